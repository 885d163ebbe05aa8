"""Environments with action masks, chosen by `env.id=tests.unit.masked_env:NAME`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 9


class Masked(gymnasium.Env[Any, Any]):
    """An environment with random masks, which raises an error for a masked action.

    Args:
        in_obs: True to give the mask as a part of the observation, False as a part of `info`.
        sizes: the number of categories of each dimension; one of them makes a `Discrete`.
        blocks_at: number of the env step whose mask allows no action in the last dimension.
    """

    def __init__(
        self, in_obs: bool = False, sizes: tuple[int, ...] = (5,), blocks_at: int | None = None
    ) -> None:
        self._in_obs, self._sizes, self._blocks_at = in_obs, list(sizes), blocks_at
        self.observation_space = spaces.Box(-1.0, 1.0, (3,))
        if in_obs:
            masks = spaces.MultiBinary(sum(sizes))
            self.observation_space = spaces.Dict(
                action_mask=masks, observation=self.observation_space
            )
        self.action_space = spaces.Discrete(sizes[0], start=1)
        if len(sizes) > 1:
            self.action_space = spaces.MultiDiscrete(np.array(sizes))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._observe(False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        taken = np.atleast_1d(action) - (1 if len(self._sizes) == 1 else 0)
        first = np.cumsum([0, *self._sizes[:-1]])
        assert self.mask[first + taken].all(), f"{action} is masked"
        self.num_steps += 1
        ended = self.num_steps == LENGTH
        obs, info = self._observe(ended)
        # The highest allowed category of the first dimension is the best.
        return obs, float(taken[0]), ended and bool(taken[0] % 2), ended, info

    def _observe(self, ended: bool) -> tuple[Any, dict[str, Any]]:
        parts = [(self.np_random.random(n) < 0.4).astype(np.int8) for n in self._sizes]
        for part in parts:
            part[self.np_random.integers(len(part))] = 1
        if self.num_steps == self._blocks_at:
            parts[-1][:] = 0
        self.mask = np.concatenate(parts)
        self.obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        # After the end, no action is possible.
        shown = self.mask * (not ended)
        if self._in_obs:
            return {"action_mask": shown, "observation": self.obs}, {}
        return self.obs, {"action_mask": shown}


class Saving(Masked):
    """The same environment, which saves its own state."""

    def get_state(self) -> Any:
        return self.mask, self.obs, self.num_steps

    def set_state(self, state: Any) -> None:
        self.mask, self.obs, self.num_steps = state


gymnasium.register("Masked-v0", f"{__name__}:Masked")
gymnasium.register("MaskedSaving-v0", f"{__name__}:Saving")
