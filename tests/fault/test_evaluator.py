"""Evaluation during training: it changes no result of training, and no evaluation is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.evaluation.evaluator import Evaluator
from htsrl_cli.evaluation.video import CAPTION_HEIGHT
from htsrl_cli.tracking.film import animation
from htsrl_cli.workers.watcher import NO_STACK
from tests import sections
from tests.fault.conftest import TOTAL, TOTAL_STEPS, Train
from tests.fault.processes import NUM_EXECUTORS, WORDS, Run, wait_until
from tests.harness import STEPS_PER_ROLLOUT, Fingerprint, fingerprint, htsrl, small_config
from tests.harness import run as harness_run

INTERVAL = 320
EVAL = (f"eval.interval={INTERVAL}", "eval.episodes=3", "eval.targets=[1,1000]")
EVALUATED_STEPS = list(range(INTERVAL, TOTAL_STEPS + 1, INTERVAL))

Line = dict[str, Any]


def lines(run_dir: Path) -> tuple[list[Line], list[Line]]:
    """Returns the lines of training and those of evaluated policies, without wall-clock time."""
    everything = [
        {name: value for name, value in json.loads(line).items() if name[:5] != "time/"}
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    training = [line for line in everything if "eval/return_mean" not in line]
    return training, [line for line in everything if "eval/return_mean" in line]


def evaluator(run: Run) -> psutil.Process | None:
    """Returns the evaluator's process, which starts after all other workers."""
    workers = run.workers()
    return workers[-1] if len(workers) == NUM_EXECUTORS + 2 else None


def kill_evaluator(run: Run) -> None:
    wait_until(lambda: evaluator(run), "an evaluator")
    process = evaluator(run)
    assert process is not None
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the small run with evaluation and without interruptions."""
    words = ("checkpoint.interval=320", "checkpoint.keep=100")
    run = Run(tmp_path_factory.mktemp("evaluated"), "train", *WORDS, TOTAL, *EVAL, *words)
    assert run.wait() == 0, run.stderr
    assert not run.leftovers()
    return run.folder


def test_training_is_the_same(evaluated: Path, uninterrupted: Fingerprint) -> None:
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary["params_sha256"] == uninterrupted.params
    assert summary["optimizer_sha256"] == uninterrupted.optimizer
    assert summary["rollouts_sha256"] == uninterrupted.rollouts
    training, policies = lines(evaluated)
    assert training == uninterrupted.metrics
    assert [line["env_steps"] for line in policies] == EVALUATED_STEPS
    assert list((evaluated / "evaluations").iterdir()) == []


def test_a_policy_that_waits_to_be_written_is_not_changed_by_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[tuple[Checkpoint, dict[str, bytes]]] = []

    def submit(self: Evaluator, env_steps: int, checkpoint: Checkpoint) -> None:
        arrays = {name: array.tobytes() for name, array in checkpoint.arrays.items()}
        submitted.append((checkpoint, arrays))

    monkeypatch.setattr(Evaluator, "submit", submit)
    config = small_config("terminating", "ppo")
    steps = 4 * STEPS_PER_ROLLOUT
    evaluation = sections.evaluation(interval=STEPS_PER_ROLLOUT, episodes=1)
    harness_run(replace(config, total_steps=steps, eval=evaluation), tmp_path / "run")
    assert len(submitted) == 4
    assert submitted[0][1] != submitted[-1][1]
    for checkpoint, arrays in submitted:
        assert {name: array.tobytes() for name, array in checkpoint.arrays.items()} == arrays


def test_scores_are_those_of_the_verb(evaluated: Path) -> None:
    """Compares the scores of three policies with `htsrl eval`, and the summaries of all."""
    _, policies = lines(evaluated)
    for line in policies[3::4]:
        steps = line["env_steps"]
        path = f"{evaluated}/checkpoints/step_{steps:012d}.ckpt"
        played = ("episodes=3", "greedy=false", f"seed={steps}")
        run = htsrl("eval", f"checkpoint={path}", *played, cwd=evaluated)
        assert run.returncode == 0, run.stderr
        result = json.loads((evaluated / "eval.json").read_text())
        assert line["eval/return_mean"] == np.mean(result["scores"]["sampled"]["returns"])
    scores = [line["eval/return_mean"] for line in policies]
    for number, line in enumerate(policies, start=1):
        last = scores[max(0, number - 10) : number]
        assert line["eval/final_metric"] == pytest.approx(np.mean(last), rel=1e-12)
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary["metric"] == summary["final_metric"] == policies[-1]["eval/final_metric"]
    assert summary["evaluations"] == len(EVALUATED_STEPS)
    assert summary["env_steps_to"] == {"1": INTERVAL, "1000": None}
    assert 0 < summary["seconds_to"]["1"] < summary["seconds"]


def test_best_checkpoint_is_that_of_the_final_metric(train: Train, evaluated: Path) -> None:
    run = train(TOTAL, *EVAL, "checkpoint.interval=320", "checkpoint.keep=1")
    assert run.wait() == 0, run.stderr
    _, policies = lines(evaluated)
    best = max(policies, key=lambda line: (line["eval/final_metric"], -line["env_steps"]))
    kept = sorted(int(path.stem[5:]) for path in (run.folder / "checkpoints").iterdir())
    assert kept == sorted({best["env_steps"], TOTAL_STEPS})


def test_killed_evaluator(train: Train, evaluated: Path) -> None:
    run = train(TOTAL, *EVAL)
    kill_evaluator(run)
    run.wait_for_steps(TOTAL_STEPS // 2)
    kill_evaluator(run)
    assert run.wait() == 0, run.stderr
    assert lines(run.folder) == lines(evaluated)
    assert "its process died" in run.stderr


@pytest.mark.slow
def test_training_does_not_wait_for_a_slow_evaluator(train: Train) -> None:
    """Queues more policies than a pipe could hold."""
    number = 320
    words = ("env.mean_ms=0", "eval.interval=64", "eval.episodes=1", f"total_steps={64 * number}")
    # The evaluator is suspended to be slow, so the timeouts must be longer than that.
    run = train(*words, "env.step_timeout_s=600", "actors.timeout_s=600")
    wait_until(lambda: evaluator(run), "an evaluator")
    process = evaluator(run)
    assert process is not None
    process.suspend()
    run.wait_for_steps(64 * number)
    process.resume()
    assert run.wait() == 0, run.stderr
    _, policies = lines(run.folder)
    assert [line["env_steps"] for line in policies] == [64 * k for k in range(1, number + 1)]
    assert f"training is complete; policies left to evaluate: {number}" in run.stderr


def test_evaluator_that_hangs(train: Train) -> None:
    """Reaches the fault in evaluation only: three games are longer than the whole training."""
    run = train(
        "env=synthetic/faulty",
        "env.fault=hang",
        "env.fault_step=60",
        "env.episode_length=23",
        "env.step_timeout_s=2",
        "eval.interval=192",
        "eval.episodes=12",
        "total_steps=192",
    )
    assert run.wait() == 1, run.stderr
    assert run.stderr.count("evaluator hangs: busy with one operation for") == 3
    assert run.stderr.count("evaluating the policy from env step 192 again") == 2
    error = run.stderr[run.stderr.index("htsrl: error: ") :]
    assert error.startswith(
        "htsrl: error: the evaluator died or hung 3 times with the policy from env step 192; "
        "switch evaluation off with eval.interval=0, or raise env.step_timeout_s and "
        "actors.timeout_s\n"
    )
    assert "_fail_if_chosen" in error
    assert "Traceback" not in run.stderr
    # Training itself is complete.
    assert run.checkpoint().meta["env_steps"] == 192


@pytest.mark.slow
def test_stopped_evaluator(train: Train, evaluated: Path) -> None:
    """Suspends the evaluator: training continues, and no policy is lost."""
    run = train(TOTAL, *EVAL, "env.step_timeout_s=4", "actors.timeout_s=4")
    wait_until(lambda: run.env_steps and lines(run.folder)[1], "an evaluated policy")
    process = evaluator(run)
    assert process is not None
    process.suspend()
    assert run.wait() == 0, run.stderr
    assert lines(run.folder) == lines(evaluated)
    assert "evaluator hangs: " in run.stderr
    assert NO_STACK in run.stderr


@pytest.mark.slow
def test_pause_of_the_whole_run_is_no_hang_of_the_evaluator(train: Train, evaluated: Path) -> None:
    """Suspends and resumes all processes, as Ctrl-Z and `fg` do."""
    run = train(TOTAL, *EVAL, "env.step_timeout_s=4", "actors.timeout_s=4")
    wait_until(lambda: run.env_steps and lines(run.folder)[1], "an evaluated policy")
    run.signal(signal.SIGSTOP, group=True)
    time.sleep(6)
    run.signal(signal.SIGCONT, group=True)
    assert run.wait() == 0, run.stderr
    assert lines(run.folder) == lines(evaluated)
    assert "hangs" not in run.stderr


@pytest.mark.slow
def test_evaluator_that_dies_again_and_again(train: Train) -> None:
    run = train(TOTAL, *EVAL, "eval.episodes=1_000_000")
    run.wait_for_steps(INTERVAL)
    pids = set()
    while run.process.poll() is None:
        process = evaluator(run)
        if process is not None and process.pid not in pids:
            pids.add(process.pid)
            process.kill()
    assert run.wait() == 1
    assert f"policy from env step {INTERVAL}" in run.stderr
    assert len(pids) == 3


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_stopped_run(
    train: Train, start: Callable[..., Run], evaluated: Path, number: signal.Signals
) -> None:
    run = train(TOTAL, *EVAL)
    run.wait_for_steps(TOTAL_STEPS // 2)
    run.signal(number)
    assert run.wait() in (-number, 128 + number)
    assert not run.leftovers()
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    training, policies = lines(run.folder)
    assert training == lines(evaluated)[0]
    assert sorted(policies, key=lambda line: line["env_steps"]) == lines(evaluated)[1]


def test_folder_that_becomes_read_only(
    train: Train, start: Callable[..., Run], evaluated: Path
) -> None:
    run = train(TOTAL, *EVAL)
    run.wait_for_steps(700)
    # Files that the run has opened can still be written to; no file can be added or deleted.
    mount = ["mount", "--bind", str(run.folder), str(run.folder)]
    if sys.platform != "linux" or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a folder")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run.folder)], check=True)
        assert run.wait() == 1, run.stderr
    finally:
        subprocess.run(["umount", str(run.folder)], check=True)
    assert "Traceback" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("htsrl: error: summary.json could not be written: Read-only file system")
    assert ".ckpt: Read-only file system; this policy is not evaluated" in run.stderr
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    training, policies = lines(run.folder)
    assert training == lines(evaluated)[0]
    assert sorted(policies, key=lambda line: line["env_steps"]) == lines(evaluated)[1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations"])
def test_folder_that_cannot_be_written_to_at_the_start(train: Train, name: str) -> None:
    run = train(TOTAL, *EVAL)
    run.wait_for_start()
    wait_until(run.folder.exists, "the run's folder")
    path = run.folder / name
    # What has the name of a file, or of a folder, cannot be opened or created.
    path.mkdir() if name == "metrics.jsonl" else path.touch()
    assert run.wait() == 1, run.stderr
    path.rmdir() if name == "metrics.jsonl" else path.unlink()
    assert "Traceback" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("htsrl: error: the run folder cannot be used: ")
    assert name in last


@pytest.mark.slow
def test_stopped_while_the_queue_is_drained(
    train: Train, start: Callable[..., Run], tmp_path: Path
) -> None:
    words = (TOTAL, f"eval.interval={TOTAL_STEPS}", "eval.episodes=20_000")
    run = train(*words)
    wait_until(
        lambda: run.env_steps == TOTAL_STEPS and (run.folder / "evaluations").exists(), "the end"
    )
    run.signal(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM
    assert len(list((run.folder / "evaluations").iterdir())) == 1
    resumed = start("train", "resume=run", "eval.episodes=4")
    assert resumed.wait() == 0, resumed.stderr
    _, (policy,) = lines(run.folder)
    assert (policy["env_steps"], policy["eval/episodes"]) == (TOTAL_STEPS, 4)
    assert json.loads((run.folder / "summary.json").read_text())["evaluations"] == 1


@pytest.mark.slow
def test_filmed_games(start: Callable[..., Run], tmp_path: Path) -> None:
    words = (
        "env=gym",
        "env.id=CartPole-v1",
        "runner=serial",
        "runner.sync_interval=16",
        "actors.num_envs=4",
        "algo.num_minibatches=1",
        "learner.micro_batch=64",
        "total_steps=1280",
        "hydra.run.dir=pole",
    )
    evaluation = ("eval.interval=128", "eval.episodes=2", "eval.video_interval=500")
    assert start("train", *words, *evaluation).wait() == 0
    folder = tmp_path / "pole"
    videos = sorted((folder / "evaluations" / "videos").iterdir())
    # The first evaluated policies at or after 500 and 1000 env steps.
    assert [path.name for path in videos] == [f"policy_{n:012d}.mp4" for n in (512, 1024)]
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    images = events.Images("eval/game")
    assert [image.step for image in images] == [512, 1024]
    for image, path in zip(images, videos, strict=True):
        assert image.encoded_image_string == animation(path)
        assert (image.width, image.height) == (300, (400 + CAPTION_HEIGHT) // 2)
    plain = start("train", *words, "hydra.run.dir=plain")
    assert plain.wait() == 0
    assert fingerprint(tmp_path / "plain").params == fingerprint(folder).params


def test_what_cannot_be_filmed(tmp_path: Path) -> None:
    words = ("env=synthetic/count", "eval.interval=100", "eval.video_interval=100")
    run = htsrl("train", *words, cwd=tmp_path)
    assert run.returncode == 2
    remedy = "this environment cannot be rendered: remove the key"
    assert run.stderr == f"htsrl: error: eval.video_interval=100: {remedy}\n"
    assert list(tmp_path.iterdir()) == []
