"""Statistics of learning over tasks and seeds (Agarwal et al., 2021, arXiv 2108.13264).

In shapes, K is the number of tasks and S the number of seeds. Scores are normalized: on each task,
0 is the mean score of random actions and 1 is the mean score of the baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats

from htsrl_cli.envs.base import Array
from htsrl_cli.tracking.bootstrap import CONFIDENCE

NUM_RESAMPLES = 2_000


class Estimate(NamedTuple):
    """A statistic with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Array) -> float:
    """Returns the mean of the middle half of scores [K, S]."""
    return float(scipy.stats.trim_mean(scores, 0.25, axis=None))


def probability_of_improvement(ours: Array, theirs: Array) -> float:
    """Returns the probability that a run of `ours` scores higher than one of `theirs`.

    It is the mean over the tasks; equal scores count half. Both are scores [K, S].
    """
    ours, theirs = ours[:, :, None], theirs[:, None, :]
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def estimate(statistic: Callable[..., float], *samples: Array) -> Estimate:
    """Computes a statistic of samples [K, S] with its percentile-bootstrap confidence interval.

    The bootstrap is stratified: it draws seeds anew for each sample and each task.
    """
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(NUM_RESAMPLES):
        drawn = [rng.integers(sample.shape[1], size=sample.shape) for sample in samples]
        pairs = zip(samples, drawn, strict=True)
        resampled.append(statistic(*(np.take_along_axis(s, i, axis=1) for s, i in pairs)))
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [outside, 1 - outside])
    return Estimate(statistic(*samples), float(low), float(high))
