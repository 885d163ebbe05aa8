"""Randomness by address: every random number is a function of what it is for.

A Philox generator (Salmon et al., 2011) is keyed by the run's seed and a purpose, and its
counter starts at an address such as (environment, episode). Who draws, when, and in which order
therefore cannot matter, and nothing needs to be stored to resume.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Purpose(IntEnum):
    """The purpose of a stream of random numbers; it is part of the key, never reuse a value."""

    PARAMETERS = 0
    ACTIONS = 1
    RESETS = 2
    SHUFFLES = 3
    EVALUATION_RESETS = 4
    EVALUATION_ACTIONS = 5


def generator(seed: int, purpose: Purpose, *address: int) -> np.random.Generator:
    """A generator for `purpose` at `address` (at most two numbers), independent of all others."""
    assert len(address) <= 2, address
    high, low = (*address, 0, 0)[:2]
    counter = np.array([0, 0, low, high], dtype=np.uint64)
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def action_noise(
    seed: int, interval: int, shape: tuple[int, ...], kind: str
) -> npt.NDArray[np.float32]:
    """The numbers that sample interval `interval`'s actions, float32 [T, B, draws].

    Uniform in [0, 1) for categorical actions, standard normal for Gaussian ones.
    """
    return draw_noise(generator(seed, Purpose.ACTIONS, interval), shape, kind)


def draw_noise(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str
) -> npt.NDArray[np.float32]:
    """Numbers of `shape` that turn a distribution of `kind` (see `ActionSpec`) into actions."""
    if kind == "gaussian":
        return rng.standard_normal(shape, dtype=np.float32)
    return rng.random(shape, dtype=np.float32)


def reset_seed(seed: int, env: int, episode: int, purpose: Purpose = Purpose.RESETS) -> int:
    """Seed of episode `episode` of environment `env`, in [0, 2**31)."""
    return int(generator(seed, purpose, env, episode).integers(2**31))


def minibatch_orders(
    seed: int, update: int, num_epochs: int, num_rows: int
) -> npt.NDArray[np.int64]:
    """The order of a slot's rows in every epoch of update `update`, int64 [epochs, rows]."""
    rng = generator(seed, Purpose.SHUFFLES, update)
    return np.stack([rng.permutation(num_rows) for _ in range(num_epochs)])
