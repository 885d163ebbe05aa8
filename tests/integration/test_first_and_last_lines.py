"""Tests of what `htsrl train` says when a run starts and ends: in the terminal and in train.log."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.conftest import Htsrl

WORDS = (
    "env=gym",
    "env.id=CartPole-v1",
    "total_steps=1_000",
    "actors.num_envs=2",
    "actors.num_executors=1",
    "runner.sync_interval=128",
    "algo.update_epochs=1",
    "log.tensorboard=false",
    "hydra.run.dir=runs/a pole",
)


def said(stderr: str) -> list[str]:
    """Returns the log lines of a terminal, without times and levels."""
    lines = [re.fullmatch(r"\d\d:\d\d:\d\d INFO: (.*)", line) for line in stderr.splitlines()]
    assert all(lines), stderr
    return [line[1] for line in lines if line]


def test_a_run_introduces_itself_and_says_goodbye(htsrl: Htsrl, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a pole"
    run = htsrl("train", *WORDS, "eval.interval=500", "eval.episodes=2")
    assert run.returncode == 0, run.stderr
    lines = said(run.stderr)
    text = "\n".join(lines)
    summary = json.loads((folder / "summary.json").read_text())
    for expected in (
        f"run folder: {folder}",
        "env.id=CartPole-v1: 2 environments, observations float32[4], categorical actions[2]",
        "algo ppo, network auto: 9,155 parameters, seed 1",
        "1 executors, 1 actors (fp32), 2 learner threads (fp32)",
        "evaluated at 512 env steps: score",
        "complete after 1,024 env steps and 0:00:",
        f"training score: {summary['training_return']:.4g} (mean of the last 100 episodes)",
        f"evaluation score: {summary['metric']:.4g} (mean of the last ten policies)",
        f"best checkpoint: checkpoints/{summary['best_checkpoint']} ",
    ):
        assert expected in text
    # train.log has the same lines, with the process and the module.
    stored = (folder / "train.log").read_text()
    assert [line.rpartition("[INFO] ")[2] for line in stored.splitlines()] == lines
    assert "MainProcess" not in run.stderr

    # The commands in the last lines work as they are, also with a blank in the folder's name.
    commands = [line.partition("htsrl ")[2] for line in lines if re.match(r"  [a-z ]+: ", line)]
    verbs = [command.partition(" ")[0] for command in commands]
    assert verbs == ["eval", "report", "train"]
    for command in commands:
        done = htsrl(*shlex.split(command))
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    resumed = said(done.stderr)
    assert (
        f"resumed from {folder}/checkpoints/step_000000001024.ckpt, at 1,024 env steps" in resumed
    )
    assert any(line.startswith("complete after 2,048 env steps") for line in resumed)


def test_resume_of_a_complete_run_says_so(htsrl: Htsrl, tmp_path: Path) -> None:
    assert htsrl("train", *WORDS).returncode == 0
    before = json.loads((tmp_path / "runs" / "a pole" / "summary.json").read_text())
    run = htsrl("train", "resume='runs/a pole'")
    assert run.returncode == 0, run.stderr
    lines = said(run.stderr)
    assert "the run is complete: there is nothing to train" in lines
    assert any(line.startswith("complete after 1,024 env steps") for line in lines)
    after = json.loads((tmp_path / "runs" / "a pole" / "summary.json").read_text())
    assert after["params_sha256"] == before["params_sha256"]


def test_a_run_without_an_episode_has_no_score(htsrl: Htsrl) -> None:
    words = ("env=synthetic/sleep", "env.mean_ms=0", "env.episode_length=10_000")
    run = htsrl("train", *WORDS[2:], *words)
    assert run.returncode == 0, run.stderr
    assert "score: none, because no episode has ended" in said(run.stderr)
