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

    An observation is the agent's position as a one-hot vector, float32 [length]. The reward of an
    env step is -0.01, plus 1 if the agent reaches the door.
    """

    def __init__(self, config: CorridorConfig) -> None:
        self._config = config
        actions = ActionSpec("categorical", sizes=(2,))
        self.env_spec = EnvSpec((config.length,), "float32", actions)
        self._position = self._length = 0
        self._return = 0.0

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins an episode in a cell that `seed` determines, never in the cell with the door.

        Returns:
            The first observation, and an empty `info`.
        """
        self._position = int(np.random.default_rng(seed).integers(self._config.length - 1))
        self._length, self._return = 0, 0.0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Walks one cell to the left or to the right; walls stop the agent.

        Args:
            action: int64 [1]; 0 to walk left, 1 to walk right.

        Returns:
            The observation after this env step.
            The reward of this env step.
            terminated: True if the agent has reached the door.
            truncated: True if the time limit has ended the episode before the agent reached the
                door.
            info: empty, except on an episode's last env step. `info["episode"]` then holds the
                episode's return `r` and its length `l` in env steps.
        """
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
        """Returns the complete state of the environment as bytes."""
        meta = {
            "length": self._config.length,
            "position": self._position,
            "steps": self._length,
            "return": self._return,
        }
        return pack_state("corridor", meta)

    def set_state(self, state: bytes) -> Array:
        """Restores a state that `get_state` returned; returns the current observation.

        Raises:
            CheckpointError: the bytes are damaged, or belong to a corridor of another length.
        """
        meta, _ = unpack_state("corridor", state)
        check_fit("corridor", meta, {"length": self._config.length})
        self._position, self._length = meta["position"], meta["steps"]
        self._return = meta["return"]
        return self._observe()

    def close(self) -> None:
        """Does nothing, because there are no resources to release."""

    def _observe(self) -> Array:
        obs = np.zeros(self._config.length, np.float32)
        obs[self._position] = 1.0
        return obs


def make_corridor(config: CorridorConfig, index: int, renderer: str | None) -> CorridorEnv:
    """Builds a corridor; ignores `index` and `renderer`.

    All environments of a run are alike, and a corridor cannot be rendered.
    """
    return CorridorEnv(config)
