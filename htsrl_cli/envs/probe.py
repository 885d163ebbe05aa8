"""The test of whether a restored environment continues exactly like the saved one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.envs.base import Array, Env, action_mask
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import CheckpointError, EnvError

_NUM_STEPS = 30


def restores_exactly(config: EnvConfig) -> bool:
    """Returns True if a restored environment continues exactly like the saved one.

    Raises:
        ConfigError, EnvError: as for `make_env`.
    """
    return not restoring_fault(partial(make_env, config, 0))


def restoring_fault(build: Callable[[], Env]) -> str:
    """Returns what is wrong with a restored environment; empty if it continues like the saved one.

    Plays random actions in one instance, restores its state in a second instance, and compares the
    results of both for further random actions.

    Args:
        build: function that builds an instance.

    Raises:
        EnvError: the environment raises an exception before its state is saved.
    """
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        saved, restored = (stack.enter_context(closing(build())) for _ in range(2))
        obs, _ = saved.reset(seed=0)
        for seed in range(1, 2 * _NUM_STEPS + 1):
            obs, _, terminated, truncated, _ = saved.step(random_action(saved, rng))
            # What survives a reset shows only after one, and the episode may be long.
            if terminated or truncated or seed == _NUM_STEPS:
                obs, _ = saved.reset(seed=seed)
        try:
            found = restored.set_state(saved.get_state())
            alike = _same(obs, found) and _go_on_alike(saved, restored, rng)
        except (CheckpointError, EnvError) as error:
            return str(error)
        return "" if alike else "the restored environment continues differently"


def random_action(env: Env, rng: np.random.Generator) -> Array:
    """Returns a random allowed action: [P, D] for several players, [D] for one."""
    spec, num_players = env.env_spec.actions, env.env_spec.num_players
    shape = (num_players, spec.num_dims) if num_players > 1 else (spec.num_dims,)
    if spec.kind == "gaussian":
        return rng.standard_normal(shape, dtype=np.float32)
    if env.env_spec.has_masks:
        mask = action_mask(env)
        ranks = np.where(mask, rng.random(mask.shape), -1.0)
        dimensions = np.split(ranks, np.cumsum(spec.sizes)[:-1], axis=-1)
        return np.stack([of.argmax(axis=-1) for of in dimensions], axis=-1)
    return rng.integers(spec.sizes, size=shape)


def _go_on_alike(first: Env, second: Env, rng: np.random.Generator) -> bool:
    """Returns True if both environments give the same results for the same random actions."""
    for seed in range(_NUM_STEPS):
        action = random_action(first, rng)
        obs, *rest = first.step(action)
        other_obs, *other_rest = second.step(action)
        if not _same(obs, other_obs) or repr(rest) != repr(other_rest):
            return False
        if first.env_spec.has_masks and not _same(action_mask(first), action_mask(second)):
            return False
        if rest[1] or rest[2]:
            obs, _ = first.reset(seed=seed)
            other_obs, _ = second.reset(seed=seed)
            if not _same(obs, other_obs):
                return False
    return True


def _same(first: Any, second: Any) -> bool:
    """Returns True if two arrays have the same bytes, so that NaN equals NaN."""
    return bool(first.tobytes() == second.tobytes())
