"""Action masks of Gymnasium environments: where they are found, and their conversion.

A mask is part of a `Dict` observation, under the key `action_mask`, as in PettingZoo and RLlib; or
it is in the `info` of `reset` and `step` under the same key, as in Gymnasium's Taxi.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium import spaces

from htsrl_cli.envs.base import ActionSpec, Array
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.envs.gym.results import described
from htsrl_cli.errors import ConfigError

KEY = "action_mask"


class MaskForm:
    """The action masks of an environment.

    Args:
        config: the section `env`.
        space: the observation space, which may contain the mask.
        actions: the form of an action.

    Attributes:
        in_obs: True if the mask is part of the observation.

    Raises:
        ConfigError: the actions are not discrete.
    """

    def __init__(self, config: GymConfig, space: spaces.Space[Any], actions: ActionSpec) -> None:
        if actions.kind == "gaussian":
            raise ConfigError(
                "env.mask_actions",
                "true",
                f"the actions of env.id={config.id} are a Box, and only discrete actions can be "
                "masked: leave this key out",
            )
        self.in_obs = is_in(space)
        self._edges = np.cumsum([0, *actions.sizes]).tolist()

    def convert(self, obs: Any, given: Any) -> Array:
        """Converts the mask for an observation; see `WrapperEnv.to_mask`.

        A mask of several dimensions is an array with the categories of all dimensions, or, as for
        `MultiDiscrete.sample`, a tuple with an array for each dimension.
        """
        if self.in_obs:
            if given is not None:
                raise ValueError("there are two action masks: one is part of the observation")
            if not isinstance(obs, Mapping) or KEY not in obs:
                raise ValueError(f"the observation must contain {KEY!r}, but is {described(obs)}")
            given = obs[KEY]
        elif given is None:
            raise ValueError(
                f"there is no action mask: with env.mask_actions=true, the info of every reset and "
                f"step must contain {KEY!r}"
            )
        if isinstance(given, tuple):
            given = np.concatenate([np.ravel(of) for of in given])
        mask = np.asarray(given)
        if mask.shape != (self._edges[-1],):
            raise ValueError(
                f"the action mask has the shape {mask.shape}, but must have one entry for each "
                f"category of each dimension, ({self._edges[-1]},)"
            )
        allowed = mask == 1
        if not (allowed | (mask == 0)).all():
            raise ValueError(f"the action mask must consist of 0 and 1, but is {mask!s:.80}")
        for d, (start, stop) in enumerate(pairwise(self._edges)):
            if not allowed[start:stop].any():
                where = f" in dimension {d}" * (len(self._edges) > 2)
                raise ValueError(f"the action mask allows no action{where}")
        converted: Array = allowed
        return converted


def is_in(space: spaces.Space[Any]) -> bool:
    """Returns True if observations of a space contain an action mask."""
    return isinstance(space, spaces.Dict) and KEY in space.spaces
