"""Bootstrap confidence intervals of means."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000

Array = np.ndarray[Any, np.dtype[Any]]


def confidence_interval(samples: Array, seed: int = 0) -> tuple[Array, Array]:
    """Returns the 95 % percentile-bootstrap confidence interval of the mean over the first axis.

    Args:
        samples: [N, ...], N >= 2.
        seed: seed of the resampling.

    Returns:
        Lower and upper bounds, each of shape [...].
    """
    interval = scipy.stats.bootstrap(
        (samples,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        # The bias-corrected method would divide by zero for constant samples.
        method="percentile",
        axis=0,
        batch=NUM_RESAMPLES // 10,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high
