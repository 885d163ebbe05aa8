"""An environment that punishes clipping, chosen by `env.id=tests.unit.bounded_env:Bounded-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

HIGH = 0.5
CLIPPED = -1e6


class Bounded(gymnasium.Env[Any, Any]):
    """An environment whose reward is `CLIPPED` for actions at its bounds: those of clipping."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-HIGH, HIGH, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=2).astype(np.float32)
        return self.position, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = self.position + action
        distance = float(np.abs(self.position).sum())
        reward = CLIPPED if (np.abs(action) >= HIGH).any() else -distance
        return self.position, reward, distance > 4, False, {}


gymnasium.register("Bounded-v0", f"{__name__}:Bounded", max_episode_steps=20)
