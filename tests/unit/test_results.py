"""Results of benchmarks: stored with their origin, shown only with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from scripts.provenance import write_result
from scripts.reference.benchmarks import REGIONS, compared_learning, learning, load, throughput

RUNS = [
    {"name": name, "rate": rate} for name, rate in (("hts", 300.0), ("hts", 320.0), ("SB3", 9.0))
]


def test_a_result_names_its_origin(tmp_path: Path) -> None:
    write_result(tmp_path / "compare_peers_pong_ppo.json", {"runs": RUNS})
    measured = json.loads((tmp_path / "compare_peers_pong_ppo.json").read_text())["measured"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", measured["date"])
    assert re.fullmatch(r"[0-9a-f]{7,}\+?", measured["commit"])
    assert measured["cores"] >= 1
    assert measured["torch"]
    text = throughput(tmp_path)
    assert "| hts | 310 | 300 to 320 | 2 |" in text
    assert f"commit {measured['commit']}.*" in text


def test_learning_curves_and_comparisons_are_shown(tmp_path: Path) -> None:
    points = [
        {"env_steps": 1000 * i, "seconds": 61.0 * i, "games": 2 * i, "score": i / 2}
        for i in range(1, 101)
    ]
    write_result(tmp_path / "pong_ppo.json", {"points": points})
    text = learning(tmp_path)
    assert "| 1,000 | 1:01 | 2 | 0.50 |" in text
    assert "| 100,000 | 101:40 | 200 | 50.00 |" in text
    assert text.count("\n| ") == 2 + 12

    runs = [
        {"task": "CartPole", "variant": "hts", "seed": seed, "whole": whole, "last": 500.0}
        for seed, whole in ((1, 440.0), (2, 450.0))
    ]
    write_result(tmp_path / "compare_learning.json", {"runs": runs})
    assert "| CartPole | hts | 445.0 ± 7.1 | 500.0 ± 0.0 | 2 |" in compared_learning(tmp_path)


def test_a_result_without_an_origin_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "compare_peers_pong_ppo.json").write_text(json.dumps({"runs": RUNS}))
    assert load("compare_peers_pong_ppo", tmp_path) is None
    for region in REGIONS.values():
        assert region(tmp_path) == "Not measured yet with this version."
