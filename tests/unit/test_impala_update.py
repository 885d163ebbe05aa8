"""Tests of IMPALA's update against a slow float64 reference, for any size of micro-batches.

The references (`learner_references`) use nothing of the learner. They compute in float64, the
learner in float32. The comparisons allow ten times the observed rounding errors of parameters of
order 1 (2e-7), and say nothing about determinism. Each comparison is shown to fail for the mistakes
that it should find.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from htsrl_cli.algorithms.impala.config import ImpalaConfig
from htsrl_cli.config.kinds import AlgoConfig
from tests import sections
from tests.unit.learner_references import IMPALA, SPEC, ImpalaReference, make_slot
from tests.unit.learners import differ, make_learner, no_check, theta_of
from tests.unit.recurrent_references import Theta

# Sums over the rows have larger gradients than means. In both forms some gradients are clipped and
# others are not.
SUMMED = replace(IMPALA, sum_losses=True, max_grad_norm=50.0)
FORMS = pytest.mark.parametrize("config", [IMPALA, SUMMED], ids=["mean", "sum"])
NUM_UPDATES = 5


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
    assert 0 < reference.num_clipped < 3
    assert all(number > 0 for number in reference.limits.num_limited.values())


WRONG = {
    "learning_rate": 1.1e-2,
    "anneal_learning_rate": False,
    "gamma": 0.91,
    "gae_lambda": 0.81,
    "max_weight": 1.25,
    "vtrace_rho": 1.15,
    "vtrace_c": 1.05,
    "entropy_coef": 0.02,
    "value_coef": 0.55,
    "max_grad_norm": 1.02,
    "rmsprop_alpha": 0.98,
    "rmsprop_eps": 2e-3,
    "sum_losses": True,
}


@pytest.mark.parametrize("key", WRONG)
def test_the_impala_comparison_feels_every_key(key: str) -> None:
    # The clipped gradients of a sum and of a mean are equal.
    right = replace(SUMMED, sum_losses=False) if key == "sum_losses" else IMPALA
    config: ImpalaConfig = replace(right, **{key: WRONG[key]})  # type: ignore[arg-type]
    learner = make_learner(config, num_updates=NUM_UPDATES)
    reference = ImpalaReference(right, theta_of(learner), NUM_UPDATES)
    for number in range(2):
        slot = make_slot(SPEC, number)
        reference.update(slot, number)
        learner.update(slot, no_check)
    assert differ(reference.theta, theta_of(learner))


SAME_AS_A2C = (
    "learning_rate",
    "anneal_learning_rate",
    "gamma",
    "entropy_coef",
    "value_coef",
    "max_grad_norm",
    "rmsprop_alpha",
    "rmsprop_eps",
)


def after_updates(algo: AlgoConfig) -> Theta:
    """Returns the parameters after three updates without policy lag."""
    learner = make_learner(algo, num_updates=NUM_UPDATES, lag=0)
    for number in range(3):
        learner.update(make_slot(SPEC, number), no_check)
    return theta_of(learner)


@pytest.mark.parametrize(("gae_lambda", "is_equal"), [(1.0, True), (0.95, False)])
def test_without_lag_and_with_lambda_one_impala_is_a2c(gae_lambda: float, is_equal: bool) -> None:
    a2c = sections.a2c(**{name: getattr(IMPALA, name) for name in SAME_AS_A2C})
    impala = after_updates(replace(IMPALA, gae_lambda=gae_lambda))
    assert differ(impala, after_updates(a2c)) != is_equal
