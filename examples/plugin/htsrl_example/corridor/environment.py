"""A corridor: the agent starts in a random cell and walks left or right to find the door."""

from __future__ import annotations

from typing import Any

import numpy as np

from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.state import check_fit, pack_state, unpack_state
from htsrl_example.corridor.config import CorridorConfig

_STEP_COST = 0.01


class CorridorEnv:
    """A corridor with a door at its right end.

    Observations are one-hot positions, float32 [length]. The reward is 1 at the door, minus 0.01
    for every env step.
    """

    def __init__(self, config: CorridorConfig) -> None:
        self._config = config
        actions = ActionSpec("categorical", sizes=(2,))
        self.env_spec = EnvSpec((config.length,), "float32", actions)
        self._position = self._length = 0
        self._return = 0.0

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins an episode in a cell that `seed` determines."""
        self._position = int(np.random.default_rng(seed).integers(self._config.length - 1))
        self._length, self._return = 0, 0.0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Walks one cell: 0 is left, 1 is right."""
        move = 1 if action[0] else -1
        self._position = min(max(self._position + move, 0), self._config.length - 1)
        self._length += 1
        terminated = self._position == self._config.length - 1
        truncated = not terminated and self._length == self._config.time_limit
        reward = float(terminated) - _STEP_COST
        self._return += reward
        info = {}
        if terminated or truncated:
            info["episode"] = {"r": self._return, "l": self._length}
        return self._observe(), reward, terminated, truncated, info

    def get_state(self) -> bytes:
        """Saves everything that determines the future."""
        meta = {
            "length": self._config.length,
            "position": self._position,
            "steps": self._length,
            "return": self._return,
        }
        return pack_state("corridor", meta)

    def set_state(self, state: bytes) -> Array:
        """Restores a state saved by `get_state`; returns the observation.

        Raises:
            CheckpointError: the bytes are damaged, or belong to a corridor of another length.
        """
        meta, _ = unpack_state("corridor", state)
        check_fit("corridor", meta, {"length": self._config.length})
        self._position, self._length = meta["position"], meta["steps"]
        self._return = meta["return"]
        return self._observe()

    def close(self) -> None:
        """Does nothing: there are no resources other than memory."""

    def _observe(self) -> Array:
        obs = np.zeros(self._config.length, np.float32)
        obs[self._position] = 1.0
        return obs


def make_corridor(config: CorridorConfig, index: int, renderer: str | None) -> CorridorEnv:
    """Builds a corridor; it cannot be rendered, and `index` makes no difference."""
    return CorridorEnv(config)
