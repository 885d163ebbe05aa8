"""Tests of randomness by address: the same address, and no other, gives the same numbers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from htsrl_cli.seeding import (
    Purpose,
    action_noise,
    draw_noise,
    generator,
    minibatch_orders,
    reset_seed,
)

# For seed 1. NumPy's compatibility policy guarantees these numbers of Philox generators.
PARAMETERS_1 = 2799920918907928943
RESETS_1 = [1521071492, 1739621281, 404868347]
EVALUATION_RESET_1 = 1906597464
UNIFORM_1_2 = [0.42583197355270386, 0.9571163654327393, 0.5745354294776917, 0.24476587772369385]
NORMAL_1_2 = [-1.0694957971572876, 0.4311394989490509, -1.0150306224822998, 0.1776435673236847]
ORDERS_1_2 = [[5, 2, 1, 4, 0, 3], [1, 2, 0, 5, 3, 4]]


def first(seed: int, purpose: Purpose, *address: int) -> int:
    return int(generator(seed, purpose, *address).integers(2**63))


def test_the_purposes_are_pinned() -> None:
    # The numbers are parts of keys: a change, or a number used twice, changes what a seed means.
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "PARAMETERS": 0,
        "ACTIONS": 1,
        "RESETS": 2,
        "SHUFFLES": 3,
        "EVALUATION_RESETS": 4,
        "EVALUATION_ACTIONS": 5,
        "UNROLL_ACTIONS": 6,
    }


def test_the_scheme_is_pinned() -> None:
    # A change of these numbers changes all results of all seeds.
    assert first(1, Purpose.PARAMETERS) == PARAMETERS_1
    assert [reset_seed(1, env, episode) for env, episode in ((0, 0), (0, 1), (3, 2))] == RESETS_1
    assert reset_seed(1, 0, 0, Purpose.EVALUATION_RESETS) == EVALUATION_RESET_1
    assert action_noise(1, 2, (1, 2, 2), "categorical").ravel().tolist() == UNIFORM_1_2
    assert action_noise(1, 2, (1, 2, 2), "gaussian").ravel().tolist() == NORMAL_1_2
    assert minibatch_orders(1, 2, 2, 6).tolist() == ORDERS_1_2


def test_key_and_counter_are_the_address() -> None:
    # Philox 4x64 is keyed by (seed, purpose); its counter starts at the address.
    philox = np.random.Philox(
        key=np.array([9, 2], np.uint64), counter=np.array([0, 0, 7, 5], np.uint64)
    )
    assert reset_seed(9, 5, 7) == int(np.random.Generator(philox).integers(2**31))


def test_addresses_and_purposes_give_distinct_streams() -> None:
    # No two of 5,400 streams begin with the same 63 bits (by chance: 1e-12).
    seen = [
        first(seed, purpose, high, low)
        for seed in (0, 1, 2**63 - 1)
        for purpose in Purpose
        for high in (*range(16), 2**40)
        for low in (*range(16), 2**40, 2**63)
    ]
    assert len(set(seen)) == len(seen)


def test_streams_do_not_overlap() -> None:
    # Neighboring streams are 2**128 blocks apart, so that none continues another.
    streams = [
        generator(1, Purpose.ACTIONS, interval).integers(2**63, size=2000) for interval in range(4)
    ]
    for one, other in combinations(streams, 2):
        assert not np.isin(one, other).any()


def test_numbers_do_not_depend_on_what_was_drawn_before() -> None:
    reset_seed(1, 0, 0)
    expected = action_noise(1, 7, (4, 3, 1), "categorical")
    action_noise(1, 6, (9, 9, 1), "categorical")
    np.random.default_rng(0).random(5)
    assert np.array_equal(action_noise(1, 7, (4, 3, 1), "categorical"), expected)


def test_rows_of_a_reset_seed_fit_every_environment() -> None:
    # The ALE and Gymnasium accept 31 bits.
    seeds = [reset_seed(seed, env, 0) for seed in range(20) for env in range(20)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert max(seeds) > 2**30


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_noise_has_its_distribution(kind: str) -> None:
    # Mean and variance of 10**5 numbers of a fixed seed, within four standard errors.
    noise = action_noise(3, 0, (100, 500, 2), kind)
    assert noise.dtype == np.float32
    mean, variance = (0.5, 1 / 12) if kind == "categorical" else (0.0, 1.0)
    assert noise.mean(dtype=np.float64) == pytest.approx(mean, abs=4 * (variance / 1e5) ** 0.5)
    assert noise.var(dtype=np.float64) == pytest.approx(variance, rel=0.02)
    if kind == "categorical":
        assert noise.min() >= 0
        assert noise.max() < 1


def test_draw_noise_goes_on_in_its_stream() -> None:
    rng = generator(1, Purpose.EVALUATION_ACTIONS, 4)
    one, two = draw_noise(rng, (3,), "categorical"), draw_noise(rng, (3,), "categorical")
    assert not np.array_equal(one, two)


def test_orders_are_permutations_that_differ() -> None:
    orders = np.concatenate([minibatch_orders(1, update, 3, 50) for update in range(3)])
    assert orders.shape == (9, 50)
    assert orders.dtype == np.int64
    assert (np.sort(orders, axis=1) == np.arange(50)).all()
    assert len(np.unique(orders, axis=0)) == 9


def test_another_number_of_epochs_keeps_the_first_ones() -> None:
    assert np.array_equal(minibatch_orders(1, 0, 2, 50), minibatch_orders(1, 0, 5, 50)[:2])
