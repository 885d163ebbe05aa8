"""Tests of the statistics of `scripts.compare_learning`."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.compare_learning import Trained, normalized, summarize
from scripts.learning_statistics import (
    estimate,
    interquartile_mean,
    probability_of_improvement,
)


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    scores = np.array([[-1e9, 2.0, 4.0, 1e9], [-1e9, 3.0, 3.0, 1e9]])
    assert interquartile_mean(scores) == 3.0


def test_probability_of_improvement_by_hand() -> None:
    # First task: of 4 pairs, 2 are better and 1 is equal; second task: none.
    ours, theirs = np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([[1.0, 2.0], [5.0, 6.0]])
    assert probability_of_improvement(ours, theirs) == (2.5 / 4 + 0) / 2


def test_the_interval_draws_seeds_within_tasks() -> None:
    # Tasks that differ a lot, seeds that do not: a bootstrap over tasks would give a wide interval.
    scores = np.array([[0.0] * 5, [100.0] * 5])
    assert estimate(lambda sample: float(sample.mean()), scores) == (50, 50, 50)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [
        estimate(lambda sample: float(sample.mean()), rng.standard_normal((4, 10)))
        for _ in range(60)
    ]
    covered = sum(low < 0 < high for _, low, high in intervals)
    assert 48 <= covered < 60


def test_scores_are_normalized_by_random_actions_and_sync() -> None:
    means = {("a", "sync"): 10.0, ("a", "none"): 5.0, ("b", "sync"): -1.0, ("b", "none"): -2.0}
    runs = [
        Trained(task, variant, seed, whole=mean, last=mean + seed - 1.5)
        for (task, variant), mean in means.items()
        for seed in (1, 2)
    ]
    random = {"a": 0.0, "b": -3.0}
    scores = normalized(runs, random, "last")
    np.testing.assert_allclose(scores["sync"], [[0.95, 1.05], [0.75, 1.25]])
    np.testing.assert_allclose(scores["none"], [[0.45, 0.55], [0.25, 0.75]])
    records = {(r["figure"], r["variant"]): r for r in summarize(runs, random)}
    assert records["whole", "sync"]["mean"] == pytest.approx((1, 1, 1))
    assert records["whole", "none"]["mean"] == pytest.approx((0.5, 0.5, 0.5))
    assert records["whole", "none"]["improvement"] == (0, 0, 0)
    assert records["whole", "sync"]["improvement"] == (0.5, 0.5, 0.5)
