"""Sweeps with Hydra's plugins: complete, failing, killed and resumed ones."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from tests.conftest import Htsrl
from tests.fault.conftest import TOTAL, TOTAL_STEPS
from tests.fault.processes import WORDS, Run, wait_until
from tests.harness import Fingerprint, fingerprint

# A search of eight trials, two at a time; those with three minibatches fail.
SEARCH = (
    "train",
    "-m",
    "experiment=cartpole_ppo",
    "hparams_search=ppo",
    "hydra.sweeper.n_trials=8",
    "total_steps=2048",
    "algo.clip_coef=0.2",
    "hydra.sweep.dir=sweep",
    "algo.num_minibatches=choice(3, 4)",
    # Few values, so that some are proposed more than once.
    "algo.learning_rate=choice(1e-3, 3e-4)",
    "algo.entropy_coef=choice(0.0, 0.01)",
)
# A small job of a sweep.
JOB_WORDS = (*(word for word in WORDS if "run.dir" not in word), "hydra.sweep.dir=sweep")


def summaries(folder: Path) -> dict[str, Any]:
    """Returns the summaries of a sweep's complete jobs, without wall-clock time."""
    found = {}
    for path in folder.rglob("summary.json"):
        summary = json.loads(path.read_text())
        named = {k: v for k, v in summary.items() if "second" not in k}
        found[str(path.parent.relative_to(folder))] = named
    return found


@pytest.mark.slow
def test_search_that_is_killed_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Run]
) -> None:
    whole = tmp_path_factory.mktemp("whole")
    run = Run(whole, *SEARCH)
    assert run.wait() == 0, run.stderr
    results = OmegaConf.load(whole / "sweep" / "optimization_results.yaml")
    complete = summaries(whole / "sweep")
    assert 1 < len(complete) < 8
    assert "algo.num_minibatches=3: must divide" in run.stderr
    # The sampler got the results of all complete jobs.
    assert results.best_value == max(summary["metric"] for summary in complete.values())

    killed = start(*SEARCH)
    wait_until(lambda: len(summaries(tmp_path / "sweep")) >= 2, "two complete jobs")
    killed.signal(signal.SIGKILL)
    killed.wait()
    # The jobs end together with the sweep.
    wait_until(lambda: not killed.processes(), "the jobs' end")
    assert len(summaries(tmp_path / "sweep")) < len(complete)
    again = start(*SEARCH, "resume=auto")
    assert again.wait() == 0, again.stderr
    assert summaries(tmp_path / "sweep") == complete
    assert OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml") == results


@pytest.mark.slow
def test_search_without_a_result(tmp_path: Path, start: Callable[..., Run]) -> None:
    """Searches with so few env steps that no episode ends, so that no trial has a metric."""
    run = start(
        "train",
        "-m",
        *JOB_WORDS,
        "sweeper=optuna",
        "launcher=joblib",
        "hydra.sweeper.n_trials=2",
        "env.episode_length=1000",
        "total_steps=256",
        "algo.learning_rate=tag(log, interval(1e-5, 1e-2))",
        "algo.entropy_coef=interval(0.0, 0.02)",
    )
    assert run.wait() == 1, run.stderr
    assert run.stderr.splitlines()[-1].startswith("htsrl: error: no trial of sweep gave a metric")
    assert "Traceback" not in run.stderr
    assert len(summaries(tmp_path / "sweep")) == 2


# A program in which Optuna reports a search without results by another error.
REWORDED = """
import sys
from optuna.storages import InMemoryStorage
from htsrl_cli.cli.main import main

get_best_trial = InMemoryStorage.get_best_trial

def reworded(self, study_id):
    try:
        return get_best_trial(self, study_id)
    except ValueError:
        raise LookupError("in other words") from None

InMemoryStorage.get_best_trial = reworded
sys.exit(main(sys.argv[1:]))
"""
SEARCH_ALONE = (
    "train",
    "-m",
    *JOB_WORDS,
    "runner=serial",
    "sweeper=optuna",
    "hydra.sweeper.n_trials=2",
    "algo.learning_rate=interval(1e-5, 1e-2)",
    # No episode ends in so few env steps.
    "env.episode_length=1000",
    "total_steps=256",
)


def test_search_without_a_result_in_other_words(tmp_path: Path, start: Callable[..., Run]) -> None:
    run = start(command_line=[sys.executable, "-c", REWORDED, *SEARCH_ALONE])
    assert run.wait() == 1, run.stderr
    assert run.stderr.splitlines()[-1].startswith("htsrl: error: no trial of sweep gave a metric")
    assert "Traceback" not in run.stderr
    assert len(summaries(tmp_path / "sweep")) == 2


@pytest.mark.slow
def test_search_finds_its_folders_again(htsrl: Htsrl, tmp_path: Path) -> None:
    words = [*SEARCH_ALONE[:-2], "env.episode_length=10", "total_steps=256"]
    words += ["algo.entropy_coef=choice(0.0,0.01)"]
    first = htsrl(*words)
    assert first.returncode == 0, first.stderr
    complete = summaries(tmp_path / "sweep")
    assert len(complete) == 2
    again = htsrl(*words, "resume=auto")
    assert again.returncode == 0, again.stderr
    assert summaries(tmp_path / "sweep") == complete
    folder = next(iter(complete))
    assert re.fullmatch(r"\d_learning_rate-[0-9.e-]+_entropy_coef-[0-9.]+", folder)
    scored = htsrl("eval", f"checkpoint=sweep/{folder}", "episodes=1")
    assert scored.returncode == 0, scored.stderr


# A program that fails before the first trial.
BROKEN = """
import sys
from optuna.trial import Trial
from htsrl_cli.cli.main import main

Trial._suggest = lambda *args: int("no number")
sys.exit(main(sys.argv[1:]))
"""


def test_search_that_fails_otherwise_says_so(start: Callable[..., Run]) -> None:
    run = start(command_line=[sys.executable, "-c", BROKEN, *SEARCH_ALONE])
    assert run.wait() == 1, run.stderr
    assert run.stderr.splitlines()[-1].startswith("ValueError: invalid literal")


@pytest.mark.slow
def test_job_whose_process_is_killed(
    tmp_path: Path, start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    """Kills a job as the kernel does without memory: joblib fails, the same command resumes."""
    words = ("train", "-m", *JOB_WORDS, TOTAL, "launcher=joblib", "seed=1,2")
    run = start(*words)
    run.folder = tmp_path / "sweep" / "0_seed-1"
    run.wait_for_steps(TOTAL_STEPS // 3)
    jobs = [process for process in run.processes() if "loky" in " ".join(process.cmdline())]
    job = next(process for process in jobs if process.children())
    job.kill()
    assert run.wait() == 1, run.stderr
    assert "htsrl: error: a job's process died, which ended the sweep sweep:" in run.stderr
    assert "Traceback" not in run.stderr
    again = start(*words, "resume=auto")
    assert again.wait() == 0, again.stderr
    assert fingerprint(tmp_path / "sweep" / "0_seed-1") == uninterrupted


@pytest.mark.slow
def test_timeout_of_a_batch_system(
    tmp_path: Path, start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    """Sends SIGUSR2 before the time limit: the job writes a checkpoint, is requeued and resumes."""
    run = start(
        "train",
        "-m",
        *JOB_WORDS,
        TOTAL,
        "launcher=local",
    )
    run.folder = tmp_path / "sweep" / "0"
    run.wait_for_steps(TOTAL_STEPS // 3)
    (job,) = [
        process
        for process in run.processes()
        if "submitit.core._submit" in " ".join(process.cmdline())
    ]
    # Slurm signals all processes of a job.
    for process in [job, *job.children(recursive=True)]:
        process.send_signal(signal.SIGUSR2)
    assert run.wait() == 0, run.stderr
    said = (run.folder / "train.log").read_text()
    assert "SIGUSR2: stopping after this rollout" in said
    assert "resumed from" in said
    assert fingerprint(run.folder) == uninterrupted


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_jobs_of_the_local_launcher_end_with_it(
    number: signal.Signals,
    tmp_path: Path,
    start: Callable[..., Run],
    uninterrupted: Fingerprint,
) -> None:
    words = ("train", "-m", *JOB_WORDS, TOTAL, "launcher=local", "seed=1,2")
    run = start(*words)
    run.folder = tmp_path / "sweep" / "0_seed-1"
    run.wait_for_steps(TOTAL_STEPS // 6)
    run.signal(number)
    assert run.wait() in (128 + number, -number), run.stderr
    # The same command goes on, even while the jobs still write their checkpoints.
    again = start(*words)
    assert again.wait() == 0, again.stderr
    assert fingerprint(run.folder) == uninterrupted
    log = (run.folder / "train.log").read_text()
    assert "SIGTERM: stopping after this rollout" in log
    assert "resumed from" in log


def test_user_signal_without_a_batch_system(
    start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    run = start("train", *WORDS, TOTAL)
    run.wait_for_steps(TOTAL_STEPS // 3)
    run.signal(signal.SIGUSR2, group=True)
    assert run.wait() == 128 + signal.SIGUSR2, run.stderr
    assert run.checkpoint().meta["env_steps"] == run.env_steps < TOTAL_STEPS
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    assert resumed.fingerprint() == uninterrupted


def test_two_processes_do_not_train_in_one_folder(start: Callable[..., Run]) -> None:
    first = start("train", *WORDS, TOTAL)
    first.wait_for_steps(TOTAL_STEPS // 6)
    psutil.Process(first.process.pid).suspend()
    second = start("train", "resume=run", "runner.stop_grace_s=1")
    assert second.wait() == 2
    assert "another process is training here" in second.stderr.splitlines()[-1]
    # A third waits for the first one's end, and finds nothing left to do.
    third = start("train", "resume=run")
    wait_until(lambda: "waiting for it to end" in third.stderr, "the third to wait")
    psutil.Process(first.process.pid).resume()
    assert first.wait() == 0, first.stderr
    before = first.fingerprint()
    assert third.wait() == 0, third.stderr
    assert third.fingerprint() == before


def test_slurm_is_asked_for_what_a_requeue_needs(htsrl: Htsrl, tmp_path: Path) -> None:
    shown = OmegaConf.create(htsrl("train", "launcher=slurm", "--cfg", "all").stdout)
    assert shown.resume == "auto"
    assert shown.hydra.launcher._target_.endswith("SlurmLauncher")
    assert shown.hydra.launcher.max_num_timeout > 0
    assert shown.hydra.launcher.signal_delay_s > shown.runner.stop_grace_s
    # A requeued job must find the folder of the sweep.
    run = htsrl("train", "-m", "launcher=slurm", "seed=1,2")
    assert run.returncode == 2
    assert run.stderr.startswith("htsrl: error: resume=auto: needs the sweep's folder")
    assert list(tmp_path.iterdir()) == []
