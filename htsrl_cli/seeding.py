"""Counter-based random numbers, which depend only on the seed, a purpose and an address.

The key of a Philox generator (Salmon et al., 2011) consists of a seed and a purpose. Its counter
starts at an address, such as (environment, episode). Any process can therefore draw any of these
numbers, at any time and in any order, and a checkpoint need not store a generator's state.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Purpose(IntEnum):
    """Purpose of a stream of random numbers.

    A purpose's integer is part of the generator's key: never change it, and never reuse it for
    another purpose.
    """

    PARAMETERS = 0
    ACTIONS = 1
    RESETS = 2
    SHUFFLES = 3
    EVALUATION_RESETS = 4
    EVALUATION_ACTIONS = 5
    UNROLL_ACTIONS = 6


def generator(seed: int, purpose: Purpose, *address: int) -> np.random.Generator:
    """Returns the generator for a seed, purpose and address, independent of all other generators.

    Args:
        address: at most two integers, for example (environment, episode).
    """
    assert len(address) <= 2, address
    high, low = (*address, 0, 0)[:2]
    counter = np.array([0, 0, low, high], dtype=np.uint64)
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def action_noise(
    seed: int, rollout: int, shape: tuple[int, ...], kind: str
) -> npt.NDArray[np.float32]:
    """Returns the noise from which the actions of rollout `rollout` are sampled, float32 [T, B, D].

    Args:
        shape: (T, B, D), where D is the number of action dimensions.
        kind: `categorical` (uniform noise in [0, 1)) or `gaussian` (standard normal noise).
    """
    return draw_noise(generator(seed, Purpose.ACTIONS, rollout), shape, kind)


def draw_noise(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str
) -> npt.NDArray[np.float32]:
    """Draws float32 noise of shape `shape` for sampling actions; for `kind`, see `action_noise`."""
    if kind == "gaussian":
        return rng.standard_normal(shape, dtype=np.float32)
    return rng.random(shape, dtype=np.float32)


def reset_seed(seed: int, env: int, episode: int, purpose: Purpose = Purpose.RESETS) -> int:
    """Returns the seed, in [0, 2**31), for the reset that begins an episode of one environment."""
    return int(generator(seed, purpose, env, episode).integers(2**31))


def minibatch_orders(
    seed: int, update: int, num_epochs: int, num_rows: int, shard: int = 0
) -> npt.NDArray[np.int64]:
    """Returns a random order of row indices for each epoch of an update, int64 [epochs, rows].

    Args:
        num_rows: number of rows (one for each env step and column) of a shard of a slot that each
            policy learns from.
        shard: number of the shard; each has an order of its own.
    """
    rng = generator(seed, Purpose.SHUFFLES, update, shard)
    return np.stack([rng.permutation(num_rows) for _ in range(num_epochs)])
