"""Resumed runs of environments that save their own state: they equal uninterrupted runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Htsrl
from tests.harness import fingerprint

# The generator is seeded when the environment is built, never by a reset. The runs stop in the
# second episode, which a replay from its reset cannot restore.
MODULE = """
import random

import gymnasium
import numpy as np


class Drift(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1e3, 1e3, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.random = random.Random(5)
        self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.random(2).astype(np.float32)
        return self.position, {}

    def step(self, action):
        self.count += 1
        self.position = self.position + np.float32(self.random.gauss(action - 0.5))
        return self.position, float(self.np_random.random() - action), False, False, {}


class Saving(Drift):
    def get_state(self):
        return self.position, self.count, self.random.getstate()

    def set_state(self, state):
        self.position, self.count, generator = state
        self.random.setstate(generator)


class Wrong(Saving):
    def set_state(self, state):
        self.position, self.count, _ = state


gymnasium.register("Saving-v0", Saving, max_episode_steps=70)
gymnasium.register("Wrong-v0", Wrong, max_episode_steps=70)
"""
WORDS = (
    "env=gym",
    "algo=a2c",
    "actors.num_envs=2",
    "actors.inference_batch=2",
    "runner.sync_interval=20",
    "network.hidden_sizes=[8]",
    "learner.micro_batch=16",
    "learner.num_threads=1",
    "checkpoint.interval=100",
    "log.interval=100",
    "log.tensorboard=false",
)
HALF, WHOLE = 200, 400
NOT_EXACT = "resumes of this run will not be exact"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "drift.py").write_text(MODULE)
    return tmp_path


def train(htsrl: Htsrl, *words: str) -> str:
    """Trains; returns the log."""
    done = htsrl("train", *words)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("runner", ["serial", pytest.param("hts", marks=pytest.mark.slow)])
def test_resume_equals_the_uninterrupted_run(htsrl: Htsrl, folder: Path, runner: str) -> None:
    start = ("env.id=drift:Saving-v0", *WORDS, f"runner={runner}")
    log = train(htsrl, *start, f"total_steps={WHOLE}", "hydra.run.dir=whole")
    assert NOT_EXACT not in log
    train(htsrl, *start, f"total_steps={HALF}", "hydra.run.dir=run")
    train(htsrl, "resume=run", "env.id=drift:Saving-v0", f"total_steps={WHOLE}")
    assert fingerprint(folder / "run") == fingerprint(folder / "whole")
    assert json.loads((folder / "run" / "summary.json").read_text())["is_exact"] is True


@pytest.mark.usefixtures("folder")
def test_wrong_own_state_warns_that_resumes_are_not_exact(htsrl: Htsrl) -> None:
    words = ("env.id=drift:Wrong-v0", *WORDS, "runner=serial", "total_steps=80")
    log = train(htsrl, *words, "hydra.run.dir=run")
    assert "its actions are saved instead" in log
    assert NOT_EXACT in log
