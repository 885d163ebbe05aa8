"""Resumed runs of an environment with `Dict` and `Tuple` spaces: they equal uninterrupted runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Htsrl
from tests.determinism.test_own_states import HALF, WHOLE, WORDS
from tests.harness import fingerprint

# The runs stop in an episode, which is replayed with its actions.
MODULE = """
import gymnasium
import numpy as np
from gymnasium import spaces


class Rooms(gymnasium.Env):
    observation_space = spaces.Dict(
        height=spaces.Box(-np.inf, np.inf, ()),
        room=spaces.Discrete(4, start=1),
        seen=spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([2, 5], start=[1, -1])]),
        view=spaces.Box(0, 255, (3, 3), np.uint8),
    )
    action_space = spaces.Tuple(
        [spaces.Discrete(3, start=-1), spaces.Dict(hands=spaces.MultiBinary(2))]
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.height = np.float32(self.np_random.random())
        return self.observe(), {}

    def step(self, action):
        assert action in self.action_space
        move, hands = action
        self.height += np.float32(0.1 * move + hands["hands"].sum() * self.np_random.normal())
        return self.observe(), float(self.height), False, False, {}

    def observe(self):
        random = self.np_random
        return {
            "height": self.height,
            "room": random.integers(1, 5),
            "seen": (random.integers(0, 2, 3), random.integers([1, -1], [3, 4])),
            "view": random.integers(0, 256, (3, 3), np.uint8),
        }


gymnasium.register("Rooms-v0", Rooms, max_episode_steps=70)
"""


@pytest.mark.parametrize("runner", ["serial", pytest.param("hts", marks=pytest.mark.slow)])
def test_resume_equals_the_uninterrupted_run(htsrl: Htsrl, tmp_path: Path, runner: str) -> None:
    (tmp_path / "rooms.py").write_text(MODULE)
    start = ("train", "env.id=rooms:Rooms-v0", *WORDS, f"runner={runner}")
    for words in (
        (*start, f"total_steps={WHOLE}", "hydra.run.dir=whole"),
        (*start, f"total_steps={HALF}", "hydra.run.dir=run"),
        ("train", "resume=run", "env.id=rooms:Rooms-v0", f"total_steps={WHOLE}"),
    ):
        done = htsrl(*words)
        assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["is_exact"] is True
