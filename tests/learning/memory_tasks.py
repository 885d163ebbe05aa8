"""Tasks that need a memory, chosen by `env.id=tests.learning.memory_tasks:NAME`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

# Env steps of an episode, during which its cue has to be remembered.
LENGTH = 50


class Cue(gymnasium.Env[Any, Any]):
    """An environment that shows a cue once, and rewards every action that names it.

    The observation is the cue, -1 or 1, in the first env step and 0 afterwards. The largest return
    is `LENGTH`. Without memory, it is half as much on average.
    """

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue, self.num_steps = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        obs = np.zeros(1, np.float32)
        return obs, float(action == self.cue), self.num_steps == LENGTH, False, {}


class CartPoleWithoutVelocities(CartPoleEnv):
    """CartPole whose observation is only the cart's position and the pole's angle."""

    def __init__(self) -> None:
        super().__init__()
        whole: Any = self.observation_space
        self.observation_space = spaces.Box(whole.low[::2], whole.high[::2])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        return obs[::2], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        parent: Any = super()
        obs, reward, terminated, truncated, info = parent.step(action)
        return obs[::2], reward, terminated, truncated, info


gymnasium.register("Cue-v0", f"{__name__}:Cue")
gymnasium.register(
    "CartPoleWithoutVelocities-v0", f"{__name__}:CartPoleWithoutVelocities", max_episode_steps=500
)
