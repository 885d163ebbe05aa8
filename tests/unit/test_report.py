"""Tests of `htsrl report`: groups, means with confidence intervals, curves, and the page."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf

from htsrl_cli.errors import UsageError
from htsrl_cli.report import report
from htsrl_cli.report.groups import Group, group, select
from htsrl_cli.report.page import table_rows
from htsrl_cli.report.runs import FINAL_SCORE, RECENT_SCORE, find_runs, load_run
from htsrl_cli.tracking.bootstrap import confidence_interval

CARTPOLE = {"kind": "gym", "id": "CartPole-v1"}
PPO = {"name": "ppo", "learning_rate": 1e-3, "clip_coef": 0.2}
A2C = {"name": "a2c", "learning_rate": 7e-4}


def write_run(
    folder: Path,
    scores: Sequence[float | None],
    seed: int = 1,
    rate: float = 100.0,
    **sections: Any,
) -> Path:
    """Writes a run folder with a line of metrics every 1000 env steps."""
    folder.mkdir(parents=True)
    config = {"env": CARTPOLE, "algo": PPO, "seed": seed, "log": {"interval": seed}} | sections
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    lines = [
        {
            "env_steps": 1000 * i,
            "time/seconds": 1000 * i / rate,
            "episode/return_mean_100": score,
        }
        for i, score in enumerate(scores, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def groups_of(*folders: Path) -> list[Group]:
    found = {folder: load_run(folder) for folder in find_runs(folders)}
    runs, _ = select(found)
    return group(runs)


def evaluate(run: Path, *env_steps: int, score: float = 5.0) -> None:
    """Adds evaluated policies, all with the same final metric."""
    with open(run / "metrics.jsonl", "a") as file:
        for steps in env_steps:
            line = {"env_steps": steps, "time/seconds": steps / 100, "eval/return_mean": 0.0}
            file.write(json.dumps(line | {"eval/final_metric": score}) + "\n")


def test_runs_are_grouped_by_what_differs(tmp_path: Path) -> None:
    for seed in (1, 2):
        for algo in (PPO, A2C):
            name = algo["name"]
            write_run(tmp_path / f"{name}_{seed}", [1.0], seed, algo=algo)
    write_run(tmp_path / "slow", [1.0], algo=PPO | {"learning_rate": 1e-4})
    write_run(tmp_path / "pong", [1.0], env={"kind": "atari", "game": "pong"})
    found = {(g.environment, g.label): [r.folder.name for r in g.runs] for g in groups_of(tmp_path)}
    # Keys that only one algorithm has are left out: they follow from its name.
    label = "algo.name={} algo.learning_rate={}".format
    assert found == {
        ("CartPole-v1", label("a2c", "0.0007")): ["a2c_1", "a2c_2"],
        ("CartPole-v1", label("ppo", "0.001")): ["ppo_1", "ppo_2"],
        ("CartPole-v1", label("ppo", "0.0001")): ["slow"],
        ("pong", "pong"): ["pong"],
    }


def test_two_algorithms_are_told_apart_by_name_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1.0], algo=A2C)
    write_run(tmp_path / "b", [1.0], algo=PPO)
    assert [g.label for g in groups_of(tmp_path)] == ["algo.name=a2c", "algo.name=ppo"]


def test_a_search_is_shown_with_all_its_keys(tmp_path: Path) -> None:
    for number, (rate, coef) in enumerate([(0.00123456, 0.1), (0.00223456, 0.2)]):
        algo = PPO | {"learning_rate": rate, "clip_coef": coef}
        write_run(tmp_path / str(number), [1.0], algo=algo)
    assert [g.label for g in groups_of(tmp_path)] == [
        "algo.clip_coef=0.1 algo.learning_rate=0.001235",
        "algo.clip_coef=0.2 algo.learning_rate=0.002235",
    ]


def test_confidence_interval_of_a_mean() -> None:
    samples = np.array([3.0, 10.0, 4.0, 8.0, 1.0])
    means = [np.mean(chosen) for chosen in itertools.product(samples, repeat=5)]
    assert np.allclose(confidence_interval(samples), np.percentile(means, [2.5, 97.5]), atol=0.2)
    assert [float(end) for end in confidence_interval(np.array([2.0] * 3))] == [2.0, 2.0]
    low, high = confidence_interval(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert (low.tolist(), high.tolist()) == ([1.0, 5.0], [3.0, 5.0])


def test_curves_cover_what_all_runs_have(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [None, 0.0, 10.0, 20.0], seed=1, rate=100.0)
    write_run(tmp_path / "b", [20.0, 20.0, 20.0], seed=2, rate=200.0)
    (both,) = groups_of(tmp_path)
    x, mean, low, high = both.curve("env_steps")
    assert (x[0], x[-1]) == (2000, 3000)
    assert (mean[0], mean[-1]) == (10.0, 15.0)
    assert low is not None
    assert high is not None
    assert (low[-1], high[-1]) == (10.0, 20.0)
    # 20 s and 10 s for 2000 env steps, 30 s and 15 s for 3000.
    seconds, *others = both.curve("seconds")
    assert (seconds[0], seconds[-1]) == (15.0, 22.5)
    np.testing.assert_array_equal(others, [mean, low, high])
    assert both.final() == (20.0, 20.0, 20.0)
    (row,) = table_rows([both])
    assert (row["runs"], row["env steps"], row["env steps/s"]) == ("2", "3,000 to 4,000", "150")


def test_final_metric_counts_where_all_runs_were_evaluated(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = write_run(tmp_path / str(seed), [1.0, 2.0, 3.0], seed)
        with open(run / "metrics.jsonl", "a") as file:
            # Lines of evaluations are in the order in which their scores arrived.
            for steps in (3000, 1000):
                line = {"env_steps": steps, "time/seconds": steps / 100, "eval/return_mean": 0.0}
                file.write(json.dumps(line | {"eval/final_metric": steps * seed}) + "\n")
    (both,) = groups_of(tmp_path)
    assert both.score == FINAL_SCORE
    assert [curve.scores.tolist() for curve in both.curves] == [[1000, 3000], [2000, 6000]]
    assert both.final()[0] == 4500
    write_run(tmp_path / "3", [1.0, 2.0, 6.0], 3)
    (three,) = groups_of(tmp_path)
    assert three.score == RECENT_SCORE
    assert three.final()[0] == 4


def test_a_configuration_and_seed_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The longest run counts: equal runs are not independent samples.
    runs = tmp_path / "runs"
    write_run(runs / "a", [1.0, 2.0], seed=1)
    write_run(runs / "b[red]", [1.0, 2.0, 3.0], seed=1)
    write_run(runs / "c", [1.0, 2.0, 3.0], seed=1)
    write_run(runs / "d", [5.0], seed=2)
    write_run(runs / "e", [5.0], seed=2, algo=A2C)
    found = {g.label: [run.folder.name for run in g.runs] for g in groups_of(runs)}
    assert found == {"algo.name=ppo": ["b[red]", "d"], "algo.name=a2c": ["e"]}
    report.write_report([runs], tmp_path / "out")
    lines = [
        f"left out: {runs}/{name} (same configuration and seed as {runs}/b[red])"
        for name in ("a", "c")
    ]
    assert [line for line in capsys.readouterr().out.splitlines() if "left" in line] == lines
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("left out") == 2
    assert all(page.index(line) > page.rindex("</table>") for line in lines)


@pytest.mark.parametrize("schedule", ["anneal_learning_rate", "anneal_clip_coef"])
def test_total_steps_tell_groups_apart_where_a_schedule_spans_them(
    tmp_path: Path, schedule: str
) -> None:
    for steps in (2000, 3000):
        for name in ("with", "without"):
            algo = PPO | {schedule: name == "with"}
            write_run(tmp_path / f"{name}_{steps}", [1.0], steps, algo=algo, total_steps=steps)
    found = {g.label: [run.folder.name for run in g.runs] for g in groups_of(tmp_path)}
    assert found == {
        f"algo.{schedule}=true total_steps=2000": ["with_2000"],
        f"algo.{schedule}=true total_steps=3000": ["with_3000"],
        f"algo.{schedule}=false": ["without_2000", "without_3000"],
    }


def test_an_evaluated_run_counts_before_its_first_episode_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    evaluate(write_run(runs / "early", [None, None], seed=1), 1000, score=7.0)
    write_run(runs / "nothing", [None], seed=2)
    report.write_report([runs], tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (row["measure"], row["score"]) == ("final metric", "7.00")
    assert (row["env steps"], row["env steps/s"], row["minutes"]) == ("2,000", "100", "0.3")
    assert f"left out: {runs}/nothing (no episode has ended yet)\n" in capsys.readouterr().out
    # Beside a run without evaluations, this run has no comparable score.
    write_run(runs / "late", [1.0], seed=3)
    assert [[run.folder.name for run in g.runs] for g in groups_of(runs)] == [["late"]]
    report.write_report([runs], tmp_path / "out")
    assert f"left out: {runs}/early (no training episode has ended" in capsys.readouterr().out


def test_the_score_of_an_environment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(write_run(tmp_path / "a", [1.0]), 1000)
    write_run(tmp_path / "b", [1.0], env={"kind": "atari", "game": "pong"})
    report.write_report([tmp_path], tmp_path / "out")
    title = "{}, score: {}".format
    printed = " ".join(capsys.readouterr().out.split())
    assert title("CartPole-v1", FINAL_SCORE) in printed
    assert title("pong", RECENT_SCORE) in printed
    rows = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(row["environment"], row["measure"]) for row in rows] == [
        ("CartPole-v1", FINAL_SCORE),
        ("pong", RECENT_SCORE),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<td>{FINAL_SCORE}</td><td>5.00</td>" in page
    assert f"<td>{RECENT_SCORE}</td><td>1.00</td>" in page


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "<b>", [1.0, 2.0], env=CARTPOLE | {"id": "<My&Env>-v0"})
    report.write_report([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;My&amp;Env&gt;-v0" in page
    assert "<My" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)', page)
    assert len(sources) == 1
    png = base64.b64decode(sources[0].removeprefix("data:image/png;base64,"))
    assert png == (tmp_path / "out" / "learning_curves.png").read_bytes()
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.std() > 10
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (row["score"], row["95 % interval"]) == ("2.00", "-")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        report.write_report([tmp_path], tmp_path / "out")
    run = write_run(tmp_path / "a", [None])
    with pytest.raises(UsageError, match="no episode"):
        report.write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run = write_run(tmp_path / "b", [1.0])
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="--output"):
        report.write_report([run], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_run_under_way(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1.0, 2.0])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 30')
    loaded = load_run(run)
    assert loaded is not None
    assert loaded.curves[RECENT_SCORE].scores.tolist() == [1.0, 2.0]
    assert loaded.params_sha256 is None
