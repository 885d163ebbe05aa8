"""Tests of IMPALA's update against a slow float64 reference, for any size of micro-batches.

The references (`learner_references`) use nothing of the learner. They compute in float64, the
learner in float32. The comparisons allow ten times the observed rounding errors of parameters of
order 1 (2e-7), and say nothing about determinism. Each comparison is shown to fail for the mistakes
that it should find.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from htsrl_cli.algorithms.a2c.config import A2cConfig
from htsrl_cli.algorithms.impala.config import ImpalaConfig
from tests.unit.learner_references import IMPALA, SPEC, ImpalaReference, make_slot
from tests.unit.learners import differ, make_learner, no_check, theta_of

# Sums over the rows have larger gradients than means.
SUMMED = replace(IMPALA, sum_losses=True, max_grad_norm=5.0)
FORMS = pytest.mark.parametrize("config", [IMPALA, SUMMED], ids=["mean", "sum"])
NUM_UPDATES = 5


def updated(
    algo: ImpalaConfig | A2cConfig, reference: ImpalaReference | None, lag: int | None = 1
) -> bool:
    """Makes three updates from random slots; returns True if the reference ends elsewhere."""
    learner = make_learner(algo, num_updates=NUM_UPDATES, lag=lag)
    assert reference is not None
    for number in range(3):
        slot = make_slot(SPEC, number)
        reference.update(slot, number)
        learner.update(slot, no_check)
    learner.close()
    return differ(reference.theta, theta_of(learner))


@FORMS
@pytest.mark.parametrize("lag", [1, None], ids=["lag 1", "lag varies"])
@pytest.mark.parametrize(("micro_batch", "num_threads"), [(5, 1), (12, 2)])
def test_impala_equals_a_slow_reference(
    config: ImpalaConfig, lag: int | None, micro_batch: int, num_threads: int
) -> None:
    learner = make_learner(
        config, num_updates=NUM_UPDATES, lag=lag, micro_batch=micro_batch, num_threads=num_threads
    )
    reference = ImpalaReference(config, theta_of(learner), NUM_UPDATES)
    for number in range(3):
        slot = make_slot(SPEC, number)
        reference.update(slot, number)
        logged = learner.update(slot, no_check)
        assert not differ(reference.theta, theta_of(learner))
        assert logged["learner/learning_rate"] == pytest.approx(1e-2 * (1 - number / NUM_UPDATES))
    learner.close()
    assert reference.num_clipped > 0
    assert all(number > 0 for number in reference.limits.num_limited.values())
