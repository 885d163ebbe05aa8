"""Results of benchmarks: stored with their origin, shown only with it."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import compare_learning, compare_returns, paper_tables, time_to_score
from scripts.compare_returns import TASKS, sb3_settings
from scripts.learning_curve import Point
from scripts.measured_runs import compose
from scripts.provenance import read_result, write_result
from scripts.reference.benchmarks import (
    README_REGIONS,
    REGIONS,
    compared_learning,
    compared_returns,
    compared_throughput,
    find,
    learning,
    paper_comparison,
    throughput,
    times_to_score,
)
from scripts.time_to_score import reached_at

RATES = [
    ("fp32", 300.0),
    ("fp32", 320.0),
    ("sync fp32", 250.0),
    ("SB3", 90.0),
    ("SB3 kept memory", 100.0),
]
RUNS = [{"name": name, "rate": rate} for name, rate in RATES]


def test_a_result_names_its_origin(tmp_path: Path) -> None:
    path = tmp_path / "avx2" / "compare_peers_pong_ppo.json"
    write_result(path, {"runs": RUNS})
    measured = json.loads(path.read_text())["measured"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", measured["date"])
    assert re.fullmatch(r"[0-9a-f]{7,}\+?", measured["commit"])
    assert measured["cores"] >= 1
    assert measured["torch"]
    text = throughput(tmp_path)
    assert "| fp32 | 310 | 300 to 320 | 2 |" in text
    assert f"commit {measured['commit']}.*" in text

    # A second kind of processor is a second row, after its own name.
    other = tmp_path / "avx512_bf16" / "compare_peers_pong_ppo.json"
    runs = [*RUNS, {"name": "bf16", "rate": 600.0}]
    other.parent.mkdir()
    other.write_text(json.dumps({"measured": measured | {"processor": "other"}, "runs": runs}))
    text = compared_throughput(tmp_path)
    assert "| 310 | - | 250 | 100 | 3.1x |" in text
    assert "| 310 | 600 | 250 | 100 | 6.0x |" in text
    assert text.count(f"commit {measured['commit']}.*") == 2


def test_learning_curves_and_comparisons_are_shown(tmp_path: Path) -> None:
    points = [
        {"env_steps": 1000 * i, "seconds": 61.0 * i, "games": 2 * i, "score": i / 2}
        for i in range(1, 101)
    ]
    write_result(tmp_path / "avx2" / "pong_ppo.json", {"points": points})
    text = learning(tmp_path)
    assert f"![Pong, PPO]({tmp_path.name}/avx2/pong_ppo.png)" in text
    assert "| 1,000 | 1:01 | 2 | 0.50 |" in text
    assert "| 100,000 | 101:40 | 200 | 50.00 |" in text
    assert text.count("\n| ") == 2 + 12

    runs = [
        {"task": "CartPole", "variant": "hts", "seed": seed, "whole": whole, "last": 500.0}
        for seed, whole in ((1, 440.0), (2, 450.0))
    ]
    summary = [
        {"figure": "last", "variant": "hts", "mean": [1, 0.9, 1.1], "improvement": [0.5, 0.2, 0.8]}
    ]
    content = {"runs": runs, "summary": summary}
    write_result(tmp_path / "avx2" / "compare_learning.json", content)
    text = compared_learning(tmp_path)
    assert "| hts | 1.000 (0.900 to 1.100) | 0.500 (0.200 to 0.800) |" in text
    assert "| CartPole | hts | 445.0 ± 7.1 | 500.0 ± 0.0 | 2 |" in text


def test_a_published_run_is_kept_if_its_configuration_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "avx2" / "compare_learning.json"
    runs = [
        {"task": task, "variant": variant, "seed": 1, "whole": 440.0, "last": 500.0}
        for task, variant in itertools.product(("CartPole", "Acrobot"), ("sync", "vtrace"))
    ]
    tasks = {"CartPole": ["experiment=cartpole_ppo", "seed=3"], "Acrobot": ["seed=3"]}
    variants = {"sync": ["c"], "vtrace": ["d"]}
    write_result(path, {"tasks": tasks, "variants": variants, "runs": runs, "summary": []})
    first = read_result(path)
    words = {"CartPole": ["seed=3", "experiment=cartpole_ppo"], "Acrobot": ["no_such_key=4"]}
    kept = compare_learning.published_runs(first, words, {"sync": ["c"]})
    assert [(run.task, run.variant) for run in kept] == [("CartPole", "sync")]
    assert read_result(tmp_path / "none.json") == {}
    assert not compare_learning.published_runs({}, tasks, variants)

    # A result that consists of several measurements names all of them; the page names each once.
    figures: dict[str, list[Any]] = {"runs": [], "summary": []}
    earlier = first["measured"] | {"commit": "earlier"}
    write_result(path, figures, first | {"measured": earlier})
    write_result(path, figures, read_result(path))
    assert read_result(path)["measured_earlier"] == [earlier, first["measured"]]
    shown = compared_learning(tmp_path)
    assert shown.count("commit earlier") == 1
    assert shown.count(f"commit {first['measured']['commit']}") == 1


def test_minutes_of_another_processor_are_not_kept(tmp_path: Path) -> None:
    run = {"task": "pong", "runner": "hts", "seed": 2, "score": 18.3, "env_steps": 1_200_000}
    run |= {"seconds": 1800.0, "reached": True, "points": []}
    path = tmp_path / "avx2" / "time_to_score.json"
    write_result(path, {"tasks": {"pong": ["seed=3"]}, "runs": [run]})
    here = read_result(path)
    assert [r.seed for r in time_to_score.published_runs(here, {"pong": ["seed=3"]})] == [2]
    assert not time_to_score.published_runs(here, {"pong": ["seed=4"]})
    elsewhere = here | {"measured": here["measured"] | {"processor": "another"}}
    assert not time_to_score.published_runs(elsewhere, {"pong": ["seed=3"]})


def test_the_papers_tables_show_scores_and_minutes(tmp_path: Path) -> None:
    task = "football/academy_empty_goal_close"
    variants = {
        "sync PPO": ([60.0, 120.0, 180.0], [0.1, 0.4, 0.7]),
        "hts PPO": ([30.0, 60.0, 90.0], [0.2, 0.5, 0.9]),
    }
    runs = [
        {"task": task, "variant": variant, "seed": seed, "env_steps": [1000, 2000, 3000]}
        | {"seconds": [s + 6.0 * seed for s in seconds], "scores": scores}
        for variant, (seconds, scores) in variants.items()
        for seed in (1, 2)
    ]
    configurations = {
        paper_tables.label(task, variant): paper_tables.words(task, variant, 3000, "cpu")
        for variant in variants
    }
    path = tmp_path / "avx2" / "paper_tables.json"
    write_result(path, {"configurations": configurations, "runs": runs})
    rows = [line for line in paper_comparison(tmp_path).splitlines() if line.startswith("| foot")]
    assert rows == [
        f"| {task} | final metric | 0.70 (0.70 to 0.70) | 0.90 (0.90 to 0.90) |",
        # The first run of `hts` was complete after 96 seconds.
        f"| {task} | after 2 minutes | 0.10 (0.10 to 0.10) | 0.70 (0.50 to 0.90) |",
        f"| {task} | 0.4 | 2.1, 2.2 | 1.1, 1.2 |",
        f"| {task} | 0.8 | -, - | 1.6, 1.7 |",
    ]

    here = read_result(path)
    kept = paper_tables.published_runs(here, configurations)
    assert [(run.variant, run.seed) for run in kept] == [
        (variant, seed) for variant in variants for seed in (1, 2)
    ]
    longer = {**configurations, f"{task} hts PPO": paper_tables.words(task, "hts PPO", 4000, "cpu")}
    assert {run.variant for run in paper_tables.published_runs(here, longer)} == {"sync PPO"}
    elsewhere = here | {"measured": here["measured"] | {"processor": "another"}}
    assert paper_tables.published_runs(elsewhere, configurations) == []


def test_a_run_reaches_its_target_with_100_games(tmp_path: Path) -> None:
    points = [Point(n * 1000, n * 60.0, 40 * n, 6.0 * n) for n in range(1, 6)]
    # Two games of the first 80 were lucky.
    points[1] = replace(points[1], score=20.0)
    assert reached_at(points, 18.0) == points[2]
    assert reached_at(points, 31.0) is None
    assert reached_at(points, None) is None
    record = {"task": "pong", "runner": "hts", "seed": 2, "score": 18.3, "env_steps": 1_200_000}
    record |= {"seconds": 1800.0, "reached": True, "points": []}
    content = {"runs": [record, record | {"seed": 3, "seconds": None}]}
    write_result(tmp_path / "avx2" / "time_to_score.json", content)
    text = times_to_score(tmp_path)
    assert "| pong | hts | 2 | 18.3 | 1,200,000 | 30 | 18 |" in text
    # Other runs ran beside this one.
    assert "| pong | hts | 3 | 18.3 | 1,200,000 | - | 18 |" in text


def test_a_result_without_an_origin_is_refused(tmp_path: Path) -> None:
    for region in [*REGIONS.values(), *README_REGIONS.values()]:
        assert region(tmp_path) == "Not measured yet with this version."
    (tmp_path / "avx2").mkdir()
    (tmp_path / "avx2" / "compare_peers_pong_ppo.json").write_text(json.dumps({"runs": RUNS}))
    with pytest.raises(ValueError, match="has no entry `measured`"):
        list(find("compare_peers_pong_ppo", tmp_path))


def test_both_libraries_get_the_same_settings() -> None:
    """Compares with the settings of RL Zoo for Pendulum, whose exploration differs."""
    settings = sb3_settings(compose([*TASKS["Pendulum"].words, "seed=3"]))
    ppo = settings.pop("ppo")
    assert settings == {
        "env_id": "Pendulum-v1",
        "num_envs": 4,
        "total_steps": 200_000,
        "seed": 3,
        "normalize_obs": False,
        "normalize_reward": False,
        "hidden_sizes": [64, 64],
        "activation": "tanh",
        "learning_rate": 1e-3,
        "anneal_learning_rate": False,
        "adam_eps": 1e-5,
    }
    assert ppo == {
        "n_steps": 1024,
        "batch_size": 64,
        "n_epochs": 10,
        "gamma": 0.9,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "clip_range_vf": None,
        "normalize_advantage": True,
        "ent_coef": 0.0,
        "vf_coef": 0.5,
        "max_grad_norm": 0.5,
    }


def test_returns_are_compared_by_task_and_library(tmp_path: Path) -> None:
    runs = [
        {"task": "Pendulum", "library": library, "seed": seed, "last": last}
        for library, seed, last in (
            ("htsrl", 1, -180.0),
            ("SB3", 1, -200.0),
            ("htsrl", 2, -180.0),
            ("SB3", 2, -300.0),
        )
    ]
    rates = [
        {"task": "Pendulum", "library": "htsrl", "rate": rate} for rate in (2000.0, 2200.0, 2600.0)
    ]
    path = tmp_path / "avx2" / "compare_returns.json"
    words = compare_returns.TASKS["Pendulum"].words
    write_result(path, {"tasks": {"Pendulum": words}, "runs": runs, "rates": rates})
    rows = [line for line in compared_returns(tmp_path).splitlines() if "Pendulum" in line]
    assert rows == [
        "| Pendulum | 200,000 | htsrl | -180.0 (-180.0 to -180.0) | -180.0 | -250 | 2 | 2,200 |",
        "| Pendulum | 200,000 | SB3 | -250.0 (-300.0 to -200.0) | -300.0 | -250 | 2 | - |",
    ]

    here = read_result(path)
    kept_runs, kept_rates = compare_returns.published_runs(here)
    assert [(run.library, run.seed, run.last) for run in kept_runs][2:] == [
        ("htsrl", 2, -180.0),
        ("SB3", 2, -300.0),
    ]
    assert len(kept_rates) == 3
    # Returns of another processor are kept, rates are not.
    elsewhere = here | {"measured": here["measured"] | {"processor": "another"}}
    assert compare_returns.published_runs(elsewhere) == (kept_runs, [])
    other_task = here | {"tasks": {"Pendulum": [*words, "algo.gamma=0.5"]}}
    assert compare_returns.published_runs(other_task) == ([], [])
    assert compare_returns.published_runs({}) == ([], [])
