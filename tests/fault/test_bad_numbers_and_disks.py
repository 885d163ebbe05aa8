"""A loss that is not finite ends a run; a disk that is full does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.conftest import Train
from tests.fault.processes import ENDLESS, wait_until

# Rewards fine enough at first, then not a number.
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
        reward = float("nan") if self.steps > 200 else 1.0
        return numpy.zeros(2, numpy.float32), reward, False, False, {}
gymnasium.register("Broken-v0", Broken)
"""


def test_loss_that_is_not_finite(train: Train, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(ENVIRONMENT)
    run = train("env=gym", "env.id=broken:Broken-v0", "~env.episode_length", ENDLESS)
    assert run.wait() == 1, run.stderr
    error = run.stderr[run.stderr.index("htsrl: error: ") :]
    assert "not finite: loss/value" in error
    assert "algo.learning_rate" in error
    assert "Traceback" not in run.stderr
    # The update was not applied: what the last checkpoint holds can be used.
    checkpoint = run.checkpoint()
    assert checkpoint.meta["env_steps"] > 0
    assert all((array == array).all() for array in checkpoint.arrays.values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte on `run`."""
    folder = tmp_path / "run"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_disk: Path, train: Train) -> None:
    run = train("total_steps=12_800", "checkpoint.interval=1280", "checkpoint.keep=1")
    run.wait_for_steps(1400)
    kept = sorted(small_disk.rglob("*.ckpt"))
    assert kept
    with open(small_disk / "filler", "wb") as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(4096))
            filler.flush()
    wait_until(lambda: "No space left" in run.stderr, "a word about the disk")
    (small_disk / "filler").unlink()
    assert run.wait() == 0, run.stderr
