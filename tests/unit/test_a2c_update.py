"""Tests of A2C's update against a slow float64 reference, for any size of micro-batches.

The references (`learner_references`) use nothing of the learner. They compute in float64, the
learner in float32. The comparisons allow ten times the observed rounding errors of parameters of
order 1 (2e-7), and say nothing about determinism. Each comparison is shown to fail for the mistakes
that it should find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.activations import CachingLayers, as_array
from htsrl_cli.networks.registry import build_policy
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.slot import Slot
from tests.unit.learner_references import (
    A2C,
    IMAGES,
    NETWORK,
    SPEC,
    A2cReference,
    B,
    T,
    collect,
    make_slot,
)
from tests.unit.learners import (
    assert_same_state,
    differ,
    make_learner,
    no_check,
    theta_of,
)
from tests.unit.recurrent_references import Theta


def run_a2c(lag: int, at: str) -> Iterator[tuple[Theta, Theta, Theta, dict[str, float]]]:
    """Yields θ[j-1], the reference's and the learner's θ[j+1], and the log, for updates j = 1 to 7.

    The reference's θ[j-1] collects the data; `at` is where the reference takes the gradient.
    """
    learner = make_learner(A2C, lag=lag)
    reference = A2cReference(A2C, theta_of(learner))
    previous = dict(reference.theta)
    for j in range(1, 8):
        slot = collect(previous, seed=j)
        current = dict(reference.theta)
        reference.update(slot, at=previous if at == "θ[j-1]" else current)
        logged = learner.update(slot, no_check)
        yield (
            previous,
            reference.theta,
            theta_of(learner),
            logged | {"moved": differ(previous, current)},
        )
        previous = current
    learner.close()


def test_a2c_makes_the_delayed_update_of_equation_6() -> None:
    # θ[1] = θ[0]; in each of the six updates after the first one, θ[j-1] and θ[j] differ.
    moved = []
    for _, expected, got, logged in run_a2c(lag=1, at="θ[j-1]"):
        assert not differ(expected, got)
        assert logged["learner/grad_norm"] > A2C.max_grad_norm
        moved.append(logged["moved"])
    assert moved == [False] + 6 * [True]


@pytest.mark.parametrize(("lag", "at"), [(1, "θ[j]"), (0, "θ[j-1]")])
def test_the_gradient_at_the_newer_parameters_is_told_apart(lag: int, at: str) -> None:
    wrong = [differ(expected, got) for _, expected, got, _ in run_a2c(lag, at)]
    assert wrong == [False] + 6 * [True]


def test_a2c_without_lag_takes_the_gradient_where_it_stands() -> None:
    assert not any(differ(expected, got) for _, expected, got, _ in run_a2c(0, "θ[j]"))


def test_a2c_rate_falls_with_the_updates() -> None:
    # The rate falls linearly over the run's updates, to 0 after the last one.
    learner = make_learner(replace(A2C, anneal_learning_rate=True), num_updates=4)
    slot = make_slot(SPEC, 0)
    rates = [learner.update(slot, no_check)["learner/learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])


def activations_of(learner: Learner, slot: Slot, which: str, precision: str) -> list[Array]:
    """Returns the activations that an actor keeps of a slot, in passes of 12 rows.

    `which` names the learner's parameters that act: `params` or `previous`.
    """
    policy = build_policy(IMAGES, NETWORK, precision, torch.device("cpu"))
    state = learner.state().arrays
    obs = torch.from_numpy(slot.obs[:T]).flatten(0, 1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(torch.from_numpy(state[f"{which}/0.{name}"]))
        passes = []
        for rows in torch.split(obs, 12):
            layers = CachingLayers()
            policy(rows, layers)
            passes.append(layers.outputs)
    outputs = [torch.cat(parts) for parts in zip(*passes, strict=True)]
    return [as_array(y.view(T, B, *y.shape[1:])) for y in outputs]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("lag", "which"), [(0, "params"), (1, "previous")])
def test_activations_spare_the_forward_pass_and_no_bit(
    lag: int, which: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = torch.nn.functional
    called: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Tensor]:
        call: Callable[..., Tensor] = getattr(functional, name)

        def count(*args: Any) -> Tensor:
            called[name] += 1
            return call(*args)

        return count

    expected, got = (make_learner(A2C, spec=IMAGES, lag=lag, precision=precision) for _ in "12")
    for seed in range(3):
        slot = make_slot(IMAGES, seed)
        kept = activations_of(got, slot, which, precision)
        logged = expected.update(slot, no_check)
        with monkeypatch.context() as patch:
            for name in ("conv2d", "linear"):
                patch.setattr(functional, name, counted(name))
            assert got.update(slot, no_check, kept) == logged
        # Two heads in each of four micro-batches.
        assert called == {"linear": 8}
        called.clear()
        assert_same_state(expected, got)


def test_activations_are_those_of_the_parameters_that_acted() -> None:
    # Activations of the newer parameters give another result.
    right, wrong = (make_learner(A2C, spec=IMAGES) for _ in "12")
    for seed in range(2):
        slot = make_slot(IMAGES, seed)
        right.update(slot, no_check, activations_of(right, slot, "previous", "fp32"))
        wrong.update(slot, no_check, activations_of(wrong, slot, "params", "fp32"))
    assert differ(theta_of(right), theta_of(wrong))
