"""Tests of PPO's update against a slow float64 reference, for any size of micro-batches.

The references (`learner_references`) use nothing of the learner. They compute in float64, the
learner in float32. The comparisons allow ten times the observed rounding errors of parameters of
order 1 (2e-7), and say nothing about determinism. Each comparison is shown to fail for the mistakes
that it should find.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.learning import learner as learning
from tests.harness import NEEDS_BF16
from tests.unit.learner_references import (
    PPO,
    SPEC,
    B,
    PpoReference,
    T,
    make_slot,
    reevaluated,
)
from tests.unit.learners import (
    SLOT_PPO,
    differ,
    digests,
    make_learner,
    no_check,
    theta_of,
)

CORRECTIONS = ("none", "proximal", "decoupled", "vtrace")
WEIGHTED = ("decoupled", "vtrace")
# Limits of weights that some ratios of random slots exceed, and others do not.
LIMITED = replace(PPO, max_weight=1.3, vtrace_rho=1.2, vtrace_c=1.1)
LIMITS = ("max_weight", "vtrace_rho", "vtrace_c")


@pytest.mark.parametrize("micro_batch", [5, 12])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_ppo_equals_a_slow_reference(correction: str, micro_batch: int) -> None:
    # Three updates of 3 epochs and 4 minibatches. Slots are random, so that both clips are active.
    config = replace(LIMITED, correction=correction)
    learner = make_learner(config, num_updates=5, micro_batch=micro_batch)
    reference = PpoReference(config, theta_of(learner), num_updates=5)
    for number in range(3):
        slot = make_slot(SPEC, number)
        reference.update(slot, number)
        logged = learner.update(slot, no_check)
        assert not differ(reference.theta, theta_of(learner))
        assert logged["learner/learning_rate"] == pytest.approx(1e-2 * (1 - number / 5))
    assert 0 < reference.num_clipped < 3 * 3 * T * B
    is_used = dict.fromkeys(LIMITS, correction == "vtrace")
    is_used["max_weight"] = correction in WEIGHTED
    assert {name: n > 0 for name, n in reference.limits.num_limited.items()} == is_used


WRONG = {
    "gamma": 0.91,
    "gae_lambda": 0.81,
    "clip_coef": 0.21,
    "anneal_clip_coef": False,
    "anneal_learning_rate": False,
    "clip_value_loss": False,
    "normalize_advantage": False,
    "entropy_coef": 0.02,
    "value_coef": 0.55,
    "max_grad_norm": 0.051,
    "adam_eps": 2e-5,
    "update_epochs": 2,
    "num_minibatches": 3,
    "correction": "vtrace",
    "max_weight": 1.25,
    "vtrace_rho": 1.15,
    "vtrace_c": 1.05,
}


@pytest.mark.parametrize("key", WRONG)
def test_the_ppo_comparison_feels_every_key(key: str) -> None:
    is_weight = key in ("correction", *LIMITS)
    correction = "decoupled" if key == "correction" else "vtrace"
    right = replace(LIMITED, correction=correction) if is_weight else PPO
    config: PpoConfig = replace(right, **{key: WRONG[key]})  # type: ignore[arg-type]
    learner = make_learner(config, num_updates=5, micro_batch=12)
    reference = PpoReference(right, theta_of(learner), num_updates=5)
    for number in range(2):
        slot = make_slot(SPEC, number)
        reference.update(slot, number)
        learner.update(slot, no_check)
    assert differ(reference.theta, theta_of(learner))


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_without_lag_no_correction_changes_a_bit(correction: str) -> None:
    # The update uses the slot's log-probabilities and values unchanged.
    slot = make_slot(SPEC, 0)
    states = []
    for algo in (SLOT_PPO, replace(LIMITED, correction=correction)):
        learner = make_learner(algo, lag=0)
        for _ in range(2):
            logged = learner.update(slot, no_check)
        states.append(digests(learner))
        assert "lag/kl" not in logged
    assert states[0] == states[1]


@pytest.mark.parametrize("correction", WEIGHTED)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=NEEDS_BF16)])
def test_weights_of_one_give_the_bits_of_proximal(
    monkeypatch: pytest.MonkeyPatch, correction: str, precision: str
) -> None:
    def updated(name: str) -> dict[str, str]:
        learner = make_learner(replace(PPO, correction=name), precision=precision)
        for number in range(3):
            learner.update(make_slot(SPEC, number), no_check)
        return digests(learner)

    proximal, weighted = updated("proximal"), updated(correction)
    assert weighted != proximal
    monkeypatch.setattr(learning, "ratios_of", torch.ones_like)
    assert updated(correction) == proximal


def test_weights_are_logged() -> None:
    learner = make_learner(replace(LIMITED, correction="decoupled"))
    slot = make_slot(SPEC, 0)
    log_ratios = reevaluated(slot, theta_of(learner)).log_probs - slot.log_probs.astype(np.float64)
    ratios = np.exp(log_ratios)
    weights = np.minimum(ratios, LIMITED.max_weight)
    logged = learner.update(slot, no_check)
    assert {n: v for n, v in logged.items() if n.startswith("lag/")} == pytest.approx(
        {
            "lag/kl": np.mean(ratios - 1 - log_ratios),
            "lag/effective_sample_size": weights.sum() ** 2 / (weights**2).sum() / (T * B),
            "lag/max_weight": ratios.max(),
            "lag/truncated_fraction": np.mean(ratios > LIMITED.max_weight),
            "lag/first_clip_fraction": 0.0,
        },
        rel=1e-4,
    )
    assert 0 < logged["lag/truncated_fraction"] < 1
    other = make_learner(SLOT_PPO).update(slot, no_check)
    assert [name for name in other if name.startswith("lag/")] == ["lag/first_clip_fraction"]
    assert 0 < other["lag/first_clip_fraction"] < 1


def test_ppo_without_lag_has_nothing_to_reevaluate() -> None:
    learner = make_learner(PPO, lag=0)
    reference = PpoReference(SLOT_PPO, theta_of(learner), num_updates=10)
    slot = make_slot(SPEC, 0)
    reference.update(slot, 0)
    learner.update(slot, no_check)
    assert not differ(reference.theta, theta_of(learner))


def test_explained_variance() -> None:
    # It is 1 if the values equal the returns, and 0 if they are constant.
    learner = make_learner(replace(SLOT_PPO, gamma=0.0))
    slot = make_slot(SPEC, 0)
    slot.values[:T] = slot.rewards
    assert learner.update(slot, no_check)["loss/explained_variance"] == pytest.approx(1.0)
    slot.values[:T] = 0.5
    got = make_learner(replace(SLOT_PPO, gamma=0.0, gae_lambda=0.0)).update(slot, no_check)
    assert got["loss/explained_variance"] == pytest.approx(0.0, abs=1e-5)
