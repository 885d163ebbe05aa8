"""Bad numbers and full disks: a loss that is not finite ends a run, a full disk does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.errors import NonFiniteError
from htsrl_cli.sampling.async_collector import AsyncCollector
from htsrl_cli.sampling.collector import InlineCollector, ProcessCollector
from htsrl_cli.sampling.schedule import SCHEDULE_FILE, Schedule
from tests.fault.conftest import ALSO_ASYNC, ALSO_ASYNC_SLOW, Train
from tests.fault.processes import ENDLESS, STEPS_PER_ROLLOUT, WORDS, Run, wait_until
from tests.harness import run as harness_run
from tests.harness import small_config

# An environment whose rewards become so large after 200 env steps that a loss overflows.
ENVIRONMENT = """
import gymnasium, numpy
class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return numpy.zeros(2, numpy.float32), {}
    def step(self, action):
        self.steps += 1
        reward = 1e38 if self.steps > 200 else 1.0
        return numpy.zeros(2, numpy.float32), reward, False, False, {}
gymnasium.register("Broken-v0", Broken)
"""


@ALSO_ASYNC_SLOW
def test_loss_that_is_not_finite(
    start: Callable[..., Run], words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(ENVIRONMENT)
    words = tuple(word for word in words if not word.startswith("env"))
    run = start("train", *words, "env=gym", "env.id=broken:Broken-v0", ENDLESS)
    assert run.wait() == 1, run.stderr
    error = run.stderr[run.stderr.index("htsrl: error: ") :]
    assert "not finite: loss/policy, loss/value" in error
    assert "algo.learning_rate" in error
    assert "Traceback" not in run.stderr
    # The update was not applied: the last checkpoint is usable.
    checkpoint = run.checkpoint()
    assert checkpoint.meta["env_steps"] > 0
    assert all((array == array).all() for array in checkpoint.arrays.values())


@pytest.mark.parametrize(("runner", "keep"), [("hts", 1), ("serial", 2)])
def test_checkpoint_from_which_no_update_can_be_made_is_deleted(
    runner: str, keep: int, start: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(ENVIRONMENT)
    words = [word for word in WORDS if not word.startswith(("env.", "checkpoint."))]
    words += ["env=gym", "env.id=broken:Broken-v0", f"runner={runner}", "total_steps=1280"]
    run = start("train", *words, "checkpoint.interval=64", f"checkpoint.keep={keep}")
    assert run.wait() == 1, run.stderr
    assert "not finite: loss/policy, loss/value" in run.stderr
    assert ": the update from its experience is not finite" in run.stderr
    # The environment is mended.
    (tmp_path / "broken.py").write_text(ENVIRONMENT.replace("1e38", "1.0"))
    resumed = start("train", "resume=run", "env.id=broken:Broken-v0")
    assert resumed.wait() == 0, resumed.stderr
    assert resumed.checkpoint().meta["env_steps"] == 1280


SIGN = "is not saved, because it would hold values that are not finite: "


def test_infinite_parameters_are_not_saved(train: Train) -> None:
    words = ("checkpoint.interval=64", "checkpoint.keep=1", "algo.num_minibatches=1")
    run = train(*words, "algo.learning_rate=9e37", ENDLESS)
    assert run.wait() == 1, run.stderr
    assert f"{SIGN}parameter 0." in run.stderr
    assert "Traceback" not in run.stderr
    arrays = run.checkpoint().arrays.values()
    assert run.checkpoint().meta["env_steps"] > 0
    assert all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


def test_slot_that_is_not_finite_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish = InlineCollector.finish

    def spoil(self: Any, check: Any) -> None:
        finish(self, check)
        if self._ring.rollout == 7:
            self._ring.slot(7).values[3, 2] = np.nan

    monkeypatch.setattr(InlineCollector, "finish", spoil)
    with pytest.raises(NonFiniteError):
        harness_run(small_config("terminating", "a2c", runner="serial"), tmp_path / "run")
    assert f"{SIGN}slot.values" in caplog.text
    arrays = load_checkpoint(find_checkpoint(tmp_path / "run")).arrays.values()
    assert all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a file system of 8 MB on `run`."""
    folder = tmp_path / "run"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Creates a file that takes all remaining space."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@ALSO_ASYNC_SLOW
def test_full_disk(small_disk: Path, train: Train) -> None:
    run = train("total_steps=6400", "checkpoint.keep=1")
    run.wait_for_steps(700)
    filler, num_lines = fill(small_disk), run.stderr.count("\n")
    kept = run.checkpoint().meta["env_steps"]
    # Enough lines for the log file to need another block, too.
    wait_until(lambda: run.stderr.count("\n") > num_lines + 60, "more lines")
    wait_until(lambda: ".ckpt: No space left on device" in run.stderr, "a word about the disk")
    assert run.checkpoint().meta["env_steps"] == kept
    filler.unlink()
    assert run.wait() == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert run.checkpoint().meta["env_steps"] == 6400


def test_disk_that_is_full_at_the_start(small_disk: Path, train: Train) -> None:
    filler = fill(small_disk)
    run = train(ENDLESS)
    assert run.wait() == 2
    filler.unlink()
    assert run.stderr.startswith("htsrl: error: hydra.run.dir=run: ")
    assert "No space left on device" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
@ALSO_ASYNC
def test_disk_that_stays_full(small_disk: Path, train: Train) -> None:
    run = train("total_steps=3200", "checkpoint.keep=1")
    run.wait_for_steps(700)
    filler = fill(small_disk)
    kept = run.checkpoint().meta["env_steps"]
    assert run.wait() == 1, run.stderr
    filler.unlink()
    assert run.checkpoint().meta["env_steps"] == kept
    assert "htsrl: error: summary.json could not be written: No space left" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async"], indirect=True)
def test_schedule_on_a_full_disk(
    small_disk: Path, train: Train, start: Callable[..., Run], mode: str
) -> None:
    """A schedule with a gap cannot be replayed, so the run ends; a resume records the rest."""
    run = train("total_steps=6400", "checkpoint.keep=1", "runner.record=true")
    run.wait_for_steps(700)
    filler = fill(small_disk)
    status = run.wait()
    filler.unlink()
    assert status == 1, run.stderr
    assert "Traceback" not in run.stderr
    error = run.stderr[run.stderr.index("htsrl: error: ") :]
    assert "schedule.jsonl" in error
    assert "No space left on device" in error
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    assert len(Schedule.load(small_disk / SCHEDULE_FILE).updates) == 6400 // STEPS_PER_ROLLOUT


@pytest.mark.parametrize("runner", ["serial", "sync"])
def test_cell_that_nobody_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """Puts the poison back into one cell of a full slot: the learner must reject the slot."""
    host: Any = InlineCollector if runner == "serial" else ProcessCollector
    finish = host.finish

    def forget(self: Any, check: Any) -> None:
        finish(self, check)
        slot = self._ring.slot(self._ring.rollout)
        slot.truncated.view(np.uint8)[3, 2] = 0xAB

    monkeypatch.setattr(host, "finish", forget)
    with pytest.raises(AssertionError, match=r"slot\.truncated has cells that were never written"):
        harness_run(small_config("terminating", "ppo", runner=runner), tmp_path / "run")


def test_cell_of_an_unroll_that_nobody_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Puts the poison back into one cell of a full buffer of the queue."""
    take: Any = AsyncCollector.take

    def forget(self: Any, check: Any) -> Any:
        buffers = take(self, check)
        self._queue.slot_of_buffers.truncated.view(np.uint8)[3, buffers[0]] = 0xAB
        return buffers

    monkeypatch.setattr(AsyncCollector, "take", forget)
    with pytest.raises(AssertionError, match=r"slot\.truncated has cells that were never written"):
        harness_run(small_config("terminating", "impala", runner="async"), tmp_path / "run")
