"""Squashing of a policy's Gaussian actions into their bounds (`algo.squash=tanh`).

A slot holds actions before they are squashed, whose log-probabilities can be computed without
inverting tanh. Whoever steps an environment squashes them; executors do, so this module needs no
torch. `htsrl_cli.networks.distributions` has the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.envs.base import ActionSpec, Array
from htsrl_cli.errors import ConfigError

TANH = "tanh"


def squasher(actions: ActionSpec, algo: AlgoConfig) -> Callable[[Array], Array] | None:
    """Returns the function that maps stored actions [..., D] to those that an environment takes.

    Returns None if the environment takes actions as they are stored. With `algo.squash=tanh`, the
    function squashes each number u into its bounds: (low + high) / 2 + (high - low) / 2 * tanh(u).

    Raises:
        ConfigError: the actions are discrete, or a number has no bounds.
    """
    if algo.squash != TANH:
        return None
    if actions.kind != "gaussian":
        remedy = "the environment's actions are discrete: leave this key out"
        raise ConfigError("algo.squash", TANH, remedy)
    bounds: Any = np.array([actions.low, actions.high], np.float64)
    if not np.isfinite(bounds).all():
        d = int(np.flatnonzero(~np.isfinite(bounds).all(axis=0))[0])
        remedy = (
            f"number {d} of the environment's actions has the bounds {bounds[0, d]} and "
            f"{bounds[1, d]}, but both must be finite: use algo.squash=clip"
        )
        raise ConfigError("algo.squash", TANH, remedy)
    middle, half = bounds.mean(axis=0), (bounds[1] - bounds[0]) / 2

    def squash(action: Array) -> Array:
        return np.asarray(middle + half * np.tanh(action, dtype=np.float64), np.float32)

    return squash
