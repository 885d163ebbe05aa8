"""Tests of the learner against slow float64 references, for any number of threads.

The references use nothing of the learner: networks are matrix products, targets follow their
definitions, clipping and optimizers are written out. They compute in float64, the learner in
float32. The comparisons allow ten times the observed rounding errors of parameters of order 1
(2e-7), and say nothing about determinism. Each comparison is shown to fail for the mistakes that it
should find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.errors import NonFiniteError
from htsrl_cli.learning import learner as learning
from htsrl_cli.learning.gradient import num_micro_batches
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.activations import CachingLayers, as_array
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.registry import build_policy
from htsrl_cli.runners.run import train
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.sampling.requests import Request
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.slot import Slot
from tests import sections
from tests.harness import NEEDS_BF16
from tests.unit.learner_references import (
    A2C,
    IMAGES,
    NETWORK,
    PPO,
    SEED,
    SPEC,
    A2cReference,
    B,
    PpoReference,
    T,
    Theta,
    collect,
    make_slot,
    reevaluated,
)

TOLERANCE = 2e-6
# An algorithm that learns from the slot's own log-probabilities and values.
CORRECTIONS = ("none", "proximal", "decoupled", "vtrace")
WEIGHTED = ("decoupled", "vtrace")
# Limits of weights that some ratios of random slots exceed, and others do not.
LIMITED = replace(PPO, max_weight=1.3, vtrace_rho=1.2, vtrace_c=1.1)
LIMITS = ("max_weight", "vtrace_rho", "vtrace_c")
SLOT_PPO = replace(PPO, correction="none")


@pytest.fixture(autouse=True)
def _torch_as_in_a_run() -> None:
    set_up_torch()


def make_learner(
    algo: AlgoConfig,
    *,
    spec: EnvSpec = SPEC,
    num_updates: int = 10,
    lag: int = 1,
    micro_batch: int = 12,
    num_threads: int = 1,
    precision: str = "fp32",
) -> Learner:
    config = sections.learner(
        device="cpu", precision=precision, num_threads=num_threads, micro_batch=micro_batch
    )
    return Learner(spec, NETWORK, algo, config, torch.device("cpu"), num_updates, lag, SEED)


def no_check() -> None:
    """Stands in for the watcher's check; nothing ever fails."""


def theta_of(learner: Learner) -> Theta:
    """Returns the parameters of a learner's only policy."""
    arrays = learner.parameters().items()
    return {n.removeprefix("0."): torch.tensor(a, dtype=torch.float64) for n, a in arrays}


def digests(learner: Learner) -> dict[str, str]:
    """Returns the hash of every array of a learner's state, by name."""
    return {n: sha256(a.tobytes()).hexdigest() for n, a in learner.state().arrays.items()}


def differ(theta: Theta, other: Theta, atol: float = TOLERANCE) -> bool:
    return any(float((p - other[name]).abs().max()) > atol for name, p in theta.items())


# A2C


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


# PPO


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
    assert {name: n > 0 for name, n in reference.num_limited.items()} == is_used


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
    monkeypatch.setattr(learning, "_ratios", torch.ones_like)
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


def assert_same_state(one: Learner, other: Learner) -> None:
    """Asserts that θ[j], θ[j-1] and the optimizer are equal, bit for bit."""
    expected, got = one.state(), other.state()
    assert expected.values == got.values
    assert expected.arrays.keys() == got.arrays.keys()
    for name, array in expected.arrays.items():
        assert array.tobytes() == got.arrays[name].tobytes(), name


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


def test_explained_variance() -> None:
    # It is 1 if the values equal the returns, and 0 if they are constant.
    learner = make_learner(replace(SLOT_PPO, gamma=0.0))
    slot = make_slot(SPEC, 0)
    slot.values[:T] = slot.rewards
    assert learner.update(slot, no_check)["loss/explained_variance"] == pytest.approx(1.0)
    slot.values[:T] = 0.5
    got = make_learner(replace(SLOT_PPO, gamma=0.0, gae_lambda=0.0)).update(slot, no_check)
    assert got["loss/explained_variance"] == pytest.approx(0.0, abs=1e-5)


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
