"""Tests of what all updates share: clipping, lag, values, micro-batches, threads and failures.

test_a2c_update and test_ppo_update compare whole updates with slow float64 references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.errors import NonFiniteError
from htsrl_cli.learning.micro_batches import num_micro_batches
from htsrl_cli.runners.run import train
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.sampling.requests import Request
from htsrl_cli.storage.memory import Array
from tests import sections
from tests.unit.learner_references import (
    A2C,
    IMAGES,
    PPO,
    SPEC,
    B,
    T,
    make_slot,
)
from tests.unit.learners import (
    SLOT_PPO,
    assert_same_state,
    differ,
    make_learner,
    no_check,
    theta_of,
)

# Clipping, lag, and the origin of values


@contextmanager
def applied_norms() -> Iterator[list[float]]:
    """Returns the global norm of the gradients that the optimizer receives at each step."""
    norms: list[float] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.stack([(g.double() ** 2).sum() for g in gradients]).sum().sqrt()))

    hook = register_optimizer_step_pre_hook(record)
    try:
        yield norms
    finally:
        hook.remove()


@pytest.mark.parametrize("micro_batch", [12, 48])
def test_every_minibatch_is_clipped(micro_batch: int) -> None:
    learner = make_learner(replace(PPO, max_grad_norm=1e-4), micro_batch=micro_batch)
    checks = []
    with applied_norms() as norms:
        for seed in range(2):
            learner.update(make_slot(SPEC, seed), lambda: checks.append(1))
    assert len(norms) == len(checks) == 2 * PPO.update_epochs * PPO.num_minibatches
    assert norms == pytest.approx([1e-4] * len(norms), rel=1e-2)


def test_a_small_gradient_is_left_alone() -> None:
    learner = make_learner(replace(A2C, max_grad_norm=1e6))
    with applied_norms() as norms:
        logged = learner.update(make_slot(SPEC, 0), no_check)
    assert norms == pytest.approx([logged["learner/grad_norm"]], rel=1e-5)


@pytest.mark.parametrize("algo", [A2C, SLOT_PPO], ids=["a2c", "ppo"])
def test_all_values_come_from_the_slot(algo: AlgoConfig) -> None:
    # The update ignores the observation after the last env step and uses its value in the slot.
    expected, got = make_learner(algo), make_learner(algo)
    slot = make_slot(SPEC, 0)
    expected.update(slot, no_check)
    slot.obs[T] = np.nan
    got.update(slot, no_check)
    assert_same_state(expected, got)


@pytest.mark.parametrize("algo", [A2C, SLOT_PPO], ids=["a2c", "ppo"])
@pytest.mark.parametrize("name", ["values", "final_values"])
def test_the_values_of_the_slot_matter(algo: AlgoConfig, name: str) -> None:
    one, other = make_learner(algo), make_learner(algo)
    slot = make_slot(SPEC, 0)
    one.update(slot, no_check)
    array = slot.arrays()[name]
    t, c = (T, 0) if name == "values" else np.argwhere(slot.truncated)[0]
    assert not slot.truncated[T - 1, 0]
    assert not slot.terminated[T - 1, 0]
    array[t, c] += 1.0
    other.update(slot, no_check)
    assert differ(theta_of(one), theta_of(other))


def small_run() -> TrainConfig:
    return sections.train(
        env=sections.synthetic("count"),
        algo=sections.a2c(),
        actors=sections.actors(num_envs=4, inference_batch=2, device="cpu"),
        learner=sections.learner(device="cpu"),
        runner=sections.runner("serial", sync_interval=4),
        checkpoint=sections.checkpoint(),
        log=sections.log(interval=16, tensorboard=False),
        total_steps=5 * 16,
    )


def test_an_actor_that_missed_an_update_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lag is checked by the versions that actors write with their actions, not by the schedule.
    load = Actor._load_parameters

    def sometimes(self: Actor) -> None:
        if self._store.version != 3:
            load(self)

    monkeypatch.setattr(Actor, "_load_parameters", sometimes)
    with pytest.raises(AssertionError, match=r"parameter versions \[2\],.* version 4 needs"):
        train(small_run(), tmp_path)


def test_a_slot_of_two_versions_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Actor._serve_pass

    def serve_as_newer(self: Actor, policy: int, rows: Array, requests: Sequence[Request]) -> None:
        serve(self, policy, rows, requests)
        if (0, 4) in requests:
            self._ring.slot(self._ring.rollout).versions[4, 0] += 1

    monkeypatch.setattr(Actor, "_serve_pass", serve_as_newer)
    with pytest.raises(AssertionError, match=r"parameter versions \[0 1\],.* version 1 needs"):
        train(small_run(), tmp_path)


# Micro-batches and threads


CASES = [
    pytest.param(SPEC, A2C, "fp32", id="a2c"),
    pytest.param(SPEC, PPO, "fp32", id="ppo"),
    pytest.param(IMAGES, A2C, "bf16", id="a2c-images-bf16"),
    pytest.param(IMAGES, PPO, "fp32", id="ppo-images-fp32"),
]


@pytest.mark.parametrize(("spec", "algo", "precision"), CASES)
def test_the_number_of_threads_changes_no_bit(
    spec: EnvSpec, algo: AlgoConfig, precision: str
) -> None:
    learners = [
        make_learner(algo, spec=spec, micro_batch=5, num_threads=n, precision=precision)
        for n in (1, 2, 3)
    ]
    logs = []
    for learner in learners:
        logs.append([learner.update(make_slot(spec, seed), no_check) for seed in range(3)])
        learner.close()
    for learner, log in zip(learners[1:], logs[1:], strict=True):
        assert_same_state(learners[0], learner)
        assert log == logs[0]


@pytest.mark.parametrize("algo", [A2C, PPO], ids=["a2c", "ppo"])
def test_micro_batches_add_up_to_the_minibatch(algo: AlgoConfig) -> None:
    # Sums in another order round differently, hence the tolerance.
    whole = make_learner(algo, micro_batch=T * B)
    parts = [make_learner(algo, micro_batch=n) for n in (1, 5, 12)]
    for seed in range(2):
        slot = make_slot(SPEC, seed)
        logged = whole.update(slot, no_check)
        for learner in parts:
            assert learner.update(slot, no_check) == pytest.approx(logged, rel=1e-3, abs=1e-5)
            assert not differ(theta_of(whole), theta_of(learner))


@pytest.mark.parametrize(("spec", "algo", "precision"), CASES)
def test_a_restored_learner_goes_on_alike(spec: EnvSpec, algo: AlgoConfig, precision: str) -> None:
    one = make_learner(algo, spec=spec, precision=precision)
    for seed in range(2):
        one.update(make_slot(spec, seed), no_check)
    other = make_learner(algo, spec=spec, precision=precision)
    other.load_state(one.state())
    assert_same_state(one, other)
    for learner in (one, other):
        learner.update(make_slot(spec, 2), no_check)
    assert_same_state(one, other)


def test_bf16_is_close_to_fp32() -> None:
    # The first norms agree within the rounding of 8-bit mantissas, averaged over 48 rows.
    norms = [
        make_learner(A2C, spec=IMAGES, precision=precision).update(make_slot(IMAGES, 0), no_check)[
            "learner/grad_norm"
        ]
        for precision in ("fp32", "bf16")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    assert norms[0] != norms[1]


# Failures


@pytest.mark.parametrize("algo", [A2C, replace(PPO, num_minibatches=1)], ids=["a2c", "ppo"])
def test_a_loss_that_is_not_finite_is_named_and_not_applied(algo: AlgoConfig) -> None:
    learner, twin = make_learner(algo), make_learner(algo)
    for each in (learner, twin):
        each.update(make_slot(SPEC, 0), no_check)
    slot = make_slot(SPEC, 1)
    slot.rewards[3] = np.nan
    with pytest.raises(NonFiniteError, match="update 1: not finite: loss/policy, loss/value"):
        learner.update(slot, no_check)
    assert_same_state(learner, twin)


def test_a_gradient_that_is_not_finite_is_named_and_not_applied() -> None:
    # An infinite input saturates tanh: the loss is finite, the first layer's gradient is not.
    learner, twin = make_learner(A2C), make_learner(A2C)
    slot = make_slot(SPEC, 1)
    slot.obs[2, 1, 0] = np.inf
    with pytest.raises(
        NonFiniteError, match=r"not finite: gradient of 0\.trunk\.layers\.0\.weight"
    ):
        learner.update(slot, no_check)
    assert_same_state(learner, twin)


def test_check_may_give_up_between_minibatches() -> None:
    learner = make_learner(PPO)
    calls: list[int] = []

    def third_time() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), applied_norms() as norms:
        learner.update(make_slot(SPEC, 0), third_time)
    assert len(norms) == 2


@pytest.mark.parametrize(
    ("num_rows", "most", "number"),
    [
        (512, 128, 4),
        (320, 128, 4),
        (64, 128, 1),
        (65, 128, 2),
        (129, 128, 2),
        (640, 128, 6),
        (3, 1, 3),
        (1, 1, 1),
    ],
)
def test_two_threads_get_equal_numbers_of_micro_batches(
    num_rows: int, most: int, number: int
) -> None:
    assert num_micro_batches(num_rows, most) == number
