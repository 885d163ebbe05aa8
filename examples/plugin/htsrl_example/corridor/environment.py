"""A corridor: an agent starts in a random cell and walks left or right to the door."""

from __future__ import annotations

from typing import Any

import numpy as np

from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.state import check_fit, pack_state, unpack_state
from htsrl_example.corridor.config import CorridorConfig

_STEP_COST = 0.01


class CorridorEnv:
    """Observations are one-hot positions; reaching the door pays 1, every step costs 0.01."""

    def __init__(self, config: CorridorConfig) -> None:
        self._config = config
        actions = ActionSpec("categorical", sizes=(2,))
        self.env_spec = EnvSpec((config.length,), "float32", actions)
        self._position = self._length = 0
        self._return = 0.0

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Starts in a cell that `seed` decides."""
        self._position = int(np.random.default_rng(seed).integers(self._config.length - 1))
        self._length, self._return = 0, 0.0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Walks one cell: left for 0, right for 1."""
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
        """Packs everything that decides the future."""
        meta = {
            "length": self._config.length,
            "position": self._position,
            "steps": self._length,
            "return": self._return,
        }
        return pack_state("corridor", meta)

    def set_state(self, state: bytes) -> Array:
        """Restores `get_state`'s bytes; returns the observation.

        Raises:
            CheckpointError: the bytes are damaged, or of another corridor.
        """
        meta, _ = unpack_state("corridor", state)
        check_fit("corridor", meta, {"length": self._config.length})
        self._position, self._length = meta["position"], meta["steps"]
        self._return = meta["return"]
        return self._observe()

    def close(self) -> None:
        """Holds nothing outside memory."""

    def _observe(self) -> Array:
        obs = np.zeros(self._config.length, np.float32)
        obs[self._position] = 1.0
        return obs


def make_corridor(config: CorridorConfig, index: int, renderer: str | None) -> CorridorEnv:
    """Builds a corridor; all of a run are alike, and it has no picture."""
    return CorridorEnv(config)
