"""Tests of `htsrl report`: groups, means with confidence intervals, curves, and its files."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf

from htsrl_cli.errors import UsageError
from htsrl_cli.report import report
from htsrl_cli.report.groups import Group, differences, group, select
from htsrl_cli.report.runs import FINAL_SCORE, RECENT_SCORE, find_runs, load_run
from htsrl_cli.report.table import Result, result
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
            line = {
                "env_steps": steps,
                "time/seconds": steps / 100,
                "eval/return_mean": 0.0,
                "eval/episodes": 1,
            }
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
    curve = both.curve
    assert curve.env_steps.tolist() == [2000, 3000]
    assert curve.mean.tolist() == [10.0, 15.0]
    assert curve.low is not None
    assert curve.high is not None
    assert (curve.low[-1], curve.high[-1]) == (10.0, 20.0)
    # 20 s and 10 s for 2000 env steps, 30 s and 15 s for 3000.
    assert curve.seconds.tolist() == [15.0, 22.5]
    assert both.final == (20.0, (20.0, 20.0))
    assert result(both) == Result(
        environment="CartPole-v1",
        group="CartPole-v1",
        runs=2,
        env_steps=(3000, 4000),
        measure=RECENT_SCORE,
        score=20.0,
        interval=(20.0, 20.0),
        env_steps_per_second=150.0,
        seconds=27.5,
    )


def test_points_of_a_curve_are_those_of_the_runs(tmp_path: Path) -> None:
    # The scores are interpolated only where another run has a score.
    for seed in (1, 2):
        run = write_run(tmp_path / str(seed), [0.0, 10.0], seed)
        evaluate(run, *range(1000, 4000, 1000 * seed), score=float(seed))
    (both,) = groups_of(tmp_path)
    assert both.curve.env_steps.tolist() == [1000, 2000, 3000]
    assert both.curve.mean.tolist() == [1.5, 1.5, 1.5]


def test_a_long_curve_is_thinned(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [float(i) for i in range(1, 5001)])
    (one,) = groups_of(tmp_path)
    assert len(one.curve.env_steps) == 200
    np.testing.assert_allclose(one.curve.mean, one.curve.env_steps / 1000)
    assert (one.curve.env_steps[0], one.curve.env_steps[-1]) == (1000, 5_000_000)


def test_groups_are_ranked(tmp_path: Path) -> None:
    for rank, score in enumerate([3.0, 9.0, 5.0]):
        write_run(tmp_path / str(rank), [score], algo=PPO | {"clip_coef": rank / 10})
    assert [g.final[0] for g in groups_of(tmp_path)] == [9.0, 5.0, 3.0]


def test_differences_are_the_keys_that_differ(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"a_{seed}", [3.0], seed, algo=PPO)
    write_run(tmp_path / "b", [2.0], algo=PPO | {"learning_rate": 1.23456e-4})
    write_run(tmp_path / "c", [1.0], algo=A2C | {"anneal_learning_rate": True}, total_steps=7)
    assert differences(groups_of(tmp_path)) == {
        "algo.name": ["ppo", "ppo", "a2c"],
        "algo.anneal_learning_rate": ["-", "-", "true"],
        "algo.clip_coef": ["0.2", "0.2", "-"],
        "algo.learning_rate": ["0.001", "0.000123456", "0.0007"],
        "total_steps": ["-", "-", "7"],
    }
    assert differences(groups_of(tmp_path / "b")) == {}


def test_final_metric_counts_where_all_runs_were_evaluated(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = write_run(tmp_path / str(seed), [1.0, 2.0, 3.0], seed)
        with open(run / "metrics.jsonl", "a") as file:
            # Lines of evaluations are in the order in which their scores arrived.
            for steps in (3000, 1000):
                line = {
                    "env_steps": steps,
                    "time/seconds": steps / 100,
                    "eval/return_mean": 0.0,
                    "eval/episodes": 1,
                }
                file.write(json.dumps(line | {"eval/final_metric": steps * seed}) + "\n")
    (both,) = groups_of(tmp_path)
    assert both.score == FINAL_SCORE
    assert [curve.scores.tolist() for curve in both.curves] == [[1000, 3000], [2000, 6000]]
    assert both.final[0] == 4500
    write_run(tmp_path / "3", [1.0, 2.0, 6.0], 3)
    (three,) = groups_of(tmp_path)
    assert three.score == RECENT_SCORE
    assert three.final[0] == 4


def test_a_configuration_and_seed_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The longest run counts: equal runs are not independent samples.
    runs = tmp_path / "runs"
    write_run(runs / "a", [1.0, 2.0], seed=1)
    write_run(runs / "b[red]", [1.0, 2.0, 3.0], seed=1)
    periodic = {"episodes": 3, "max_episode_steps": None}
    other: dict[str, Any] = {
        "log": {"interval": 1, "wandb": "x"},
        "eval": periodic,
        "total_steps": 5,
    }
    write_run(runs / "c", [1.0, 2.0, 3.0], seed=1, **other)
    write_run(runs / "d", [5.0], seed=2)
    write_run(runs / "e", [5.0], seed=2, algo=A2C)
    found = {g.label: [run.folder.name for run in g.runs] for g in groups_of(runs)}
    assert found == {"algo.name=ppo": ["b[red]", "d"], "algo.name=a2c": ["e"]}
    report.write_report([runs], tmp_path / "out")
    equal = f"same configuration and seed as {runs}/b[red]"
    lines = [
        f"{runs}/a ({equal})",
        f"{runs}/c ({equal}, except for eval.episodes, log.wandb, total_steps)",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "left" in line] == [f"left out: {line}" for line in lines]
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall("<li>(.*)</li>", page) == lines


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
    assert (row["measure"], row["score"]) == ("final metric", 7.0)
    assert (row["env_steps"], row["env_steps_per_second"], row["seconds"]) == ([2000] * 2, 100, 20)
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
    titles = [f"Score: {score}" for score in (FINAL_SCORE, RECENT_SCORE)]
    assert re.findall('<p class="measure">(.*)</p>', page) == titles


def test_figure_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "a", [1.0, 2.0])
    for seed, score in enumerate([1.0, 4.0]):
        write_run(tmp_path / "runs" / f"{seed}", [score], seed, algo=A2C)
    report.write_report([tmp_path / "runs"], tmp_path / "out")
    picture = cv2.imread(str(tmp_path / "out" / "learning_curves.png"))
    assert picture is not None
    assert picture.std() > 10
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == [
        {
            "environment": "CartPole-v1",
            "group": f"algo.name={name}",
            "runs": runs,
            "env_steps": [steps, steps],
            "measure": RECENT_SCORE,
            "score": score,
            "interval": interval,
            "env_steps_per_second": 100.0,
            "seconds": steps / 100,
        }
        for name, runs, steps, score, interval in (
            ("a2c", 2, 1000, 2.5, [1.0, 4.0]),
            ("ppo", 1, 2000, 2.0, None),
        )
    ]
    # Numbers are aligned right.
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if "minutes" in line]
    assert printed == ["group          score  95 % interval  runs  env steps  env steps/s  minutes"]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "plotly"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    write_run(tmp_path / "runs", [1.0])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"report needs {package}: pip install 'htsrl\[report\]'"):
        report.write_report([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    assert loaded.summary == {}


def alias_bomb() -> str:
    """Returns YAML of few lines that stands for 10**30 values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 31)]
    return "\n".join(lines)


BAD_FILES = {
    "garbage config": ("config.yaml", b"{[%\n"),
    "bytes": ("config.yaml", b"\xff\xfe\x00"),
    "list": ("config.yaml", b"- 1\n- 2\n"),
    "text": ("config.yaml", b"hello\n"),
    "empty": ("config.yaml", b""),
    "no environment": ("config.yaml", b"seed: 1\n"),
    "another environment": ("config.yaml", b"env: [1]\nseed: 1\n"),
    "alias bomb": ("config.yaml", alias_bomb().encode()),
    "deep": ("config.yaml", b"a: " + b"[" * 5000 + b"]" * 5000),
    "garbage metrics": ("metrics.jsonl", b"\x00\x00\n[1]\nnull\n"),
    "other values": ("metrics.jsonl", b'{"env_steps": 64, "episode/return_mean_100": 1}\n'),
    "texts": (
        "metrics.jsonl",
        b'{"env_steps": 64, "time/seconds": "x", "episode/return_mean_100": "y"}\n',
    ),
    "no seconds": (
        "metrics.jsonl",
        b'{"env_steps": 64, "time/seconds": 0, "episode/return_mean_100": 1.0}\n',
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_folder_is_left_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "good", [1.0, 2.0])
    bad = write_run(tmp_path / "bad [/bold] [red]", [1.0, 2.0], seed=2)
    file, content = BAD_FILES[name]
    (bad / file).write_bytes(content)
    report.write_report([tmp_path], tmp_path / "out [/bold]")
    shown = capsys.readouterr().out
    assert "left out: " in shown
    assert "bad [/bold] [red]" in shown.replace("\n", "")
    (row,) = json.loads((tmp_path / "out [/bold]" / "report.json").read_text())
    assert row["runs"] == 1


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_summary_is_passed_over(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path / "run", [1.0, 2.0])
    (tmp_path / "run" / "summary.json").write_bytes(content)
    report.write_report([tmp_path], tmp_path / "out")
    assert "summary.json" in caplog.text


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = {"kind": "gym", "id": "[/bold]X-v0"}
    write_run(tmp_path / "run", [1.0, 2.0], env=env)
    report.write_report([tmp_path], tmp_path / "out")
    assert "[/bold]X-v0" in capsys.readouterr().out
