"""Counter-based random numbers: each depends only on the seed, its purpose and its address.

A Philox generator (Salmon et al., 2011) is keyed by the run's seed and a purpose. Its counter
starts at an address such as (environment, episode). It therefore does not matter who draws, when or
in which order, and a checkpoint stores no generator state.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Purpose(IntEnum):
    """Purpose of a stream of random numbers.

    Its value is part of the generator's key: never change or reuse one.
    """

    PARAMETERS = 0
    ACTIONS = 1
    RESETS = 2
    SHUFFLES = 3
    EVALUATION_RESETS = 4
    EVALUATION_ACTIONS = 5


def generator(seed: int, purpose: Purpose, *address: int) -> np.random.Generator:
    """Returns a generator that is independent of those of other purposes and addresses.

    Args:
        address: at most two numbers, for example (environment, episode).
    """
    assert len(address) <= 2, address
    high, low = (*address, 0, 0)[:2]
    counter = np.array([0, 0, low, high], dtype=np.uint64)
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def action_noise(
    seed: int, rollout: int, shape: tuple[int, ...], kind: str
) -> npt.NDArray[np.float32]:
    """Returns the noise that samples the actions of rollout number `rollout`, float32.

    Args:
        shape: [T, B, draws].
        kind: `categorical` (uniform noise in [0, 1)) or `gaussian` (standard normal noise).
    """
    return draw_noise(generator(seed, Purpose.ACTIONS, rollout), shape, kind)


def draw_noise(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str
) -> npt.NDArray[np.float32]:
    """Draws the noise that samples actions of a `kind` of `ActionSpec`, float32 of `shape`."""
    if kind == "gaussian":
        return rng.standard_normal(shape, dtype=np.float32)
    return rng.random(shape, dtype=np.float32)


def reset_seed(seed: int, env: int, episode: int, purpose: Purpose = Purpose.RESETS) -> int:
    """Returns the reset seed of episode `episode` of environment `env`, in [0, 2**31)."""
    return int(generator(seed, purpose, env, episode).integers(2**31))


def minibatch_orders(
    seed: int, update: int, num_epochs: int, num_rows: int
) -> npt.NDArray[np.int64]:
    """Returns the order of a slot's rows in each epoch of update `update`, int64 [epochs, rows]."""
    rng = generator(seed, Purpose.SHUFFLES, update)
    return np.stack([rng.permutation(num_rows) for _ in range(num_epochs)])
