"""Recurrent policies: cells, updates against slow float64 references, and errors of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from htsrl_cli.config.checks import check_combinations
from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.errors import ConfigError
from htsrl_cli.learning.learner import Learner
from htsrl_cli.learning.micro_batches import cut
from htsrl_cli.learning.sequences import Sequences, rows_of
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.recurrent import Memory
from htsrl_cli.networks.registry import (
    PRECISIONS,
    activation_layout,
    build_policy,
    initial_policies,
)
from htsrl_cli.storage.slot import Slot
from tests import harness, sections
from tests.unit.learner_references import (
    A2C,
    IMAGES,
    IMPALA,
    NETWORK,
    SPEC,
    A2cReference,
    ImpalaReference,
    PpoReference,
    make_slot,
)
from tests.unit.learner_references import PPO as ROW_PPO
from tests.unit.learners import differ, digests, make_learner, no_check, theta_of

KINDS = ("lstm", "gru")
SIZE = 4
# Of 6 columns; of 2 shards with 3 columns each.
PPO = replace(ROW_PPO, num_minibatches=3)


def with_memory(kind: str) -> NetworkConfig:
    return replace(NETWORK, memory=kind, memory_size=SIZE)


def learner_with_memory(kind: str, algo: AlgoConfig, **changes: Any) -> Learner:
    return make_learner(algo, network=with_memory(kind), num_updates=5, **changes)


def slot_for(learner: Learner, seed: int) -> Slot:
    return make_slot(SPEC, seed, learner.memory_width)


# Updates


@pytest.mark.parametrize(
    ("kind", "correction", "num_shards", "micro_batch"),
    [
        ("lstm", "none", 1, 8),
        ("gru", "proximal", 1, 100),
        ("gru", "decoupled", 2, 8),
        ("lstm", "vtrace", 2, 16),
    ],
)
def test_ppo_equals_a_slow_reference(
    kind: str, correction: str, num_shards: int, micro_batch: int
) -> None:
    config = replace(PPO, correction=correction)
    learner = learner_with_memory(kind, config, num_shards=num_shards, micro_batch=micro_batch)
    references = [
        PpoReference(config, theta_of(learner), num_updates=5, num_shards=shards)
        for shards in (num_shards, 3 - num_shards)
    ]
    for number in range(2):
        slot = slot_for(learner, number)
        for reference in references:
            reference.update(slot, number)
        learner.update(slot, no_check)
        assert not differ(references[0].theta, theta_of(learner))
    assert differ(references[1].theta, theta_of(learner)), "shards have orders of their own"
    learner.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a2c_equals_a_slow_reference(kind: str) -> None:
    learner = learner_with_memory(kind, A2C, micro_batch=16)
    slot, reference = slot_for(learner, 3), A2cReference(A2C, theta_of(learner))
    reference.update(slot, at=theta_of(learner))
    learner.update(slot, no_check)
    assert not differ(reference.theta, theta_of(learner))
    learner.close()


@pytest.mark.parametrize("kind", KINDS)
def test_impala_equals_a_slow_reference(kind: str) -> None:
    learner = learner_with_memory(kind, IMPALA, micro_batch=16)
    reference = ImpalaReference(IMPALA, theta_of(learner), num_updates=5)
    for number in range(2):
        slot = slot_for(learner, number)
        reference.update(slot, number)
        learner.update(slot, no_check)
        assert not differ(reference.theta, theta_of(learner))
    learner.close()


WRONG: dict[str, Callable[[Sequences], Sequences]] = {
    "a memory of nothing before row 0": lambda s: Sequences(torch.zeros_like(s.memories), s.starts),
    "the memory of another column": lambda s: Sequences(s.memories.roll(1, 0), s.starts),
    "no episode begins": lambda s: Sequences(s.memories, torch.zeros_like(s.starts)),
    "episodes begin one row late": lambda s: Sequences(s.memories, s.starts.roll(1, 0)),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_notices_mistakes(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_with_memory("lstm", PPO)
    reference = PpoReference(PPO, theta_of(learner), num_updates=5)
    slot, right = slot_for(learner, 0), Sequences.of
    reference.update(slot, 0)

    def wrong(slot: Slot, device: torch.device) -> Sequences:
        sequences = right(slot, device)
        assert sequences is not None
        return WRONG[mistake](sequences)

    monkeypatch.setattr(Sequences, "of", wrong)
    learner.update(slot, no_check)
    assert differ(reference.theta, theta_of(learner), atol=1e-4)


def test_threads_change_nothing() -> None:
    hashes = []
    for num_threads in (1, 3):
        learner = learner_with_memory("gru", PPO, micro_batch=8, num_threads=num_threads)
        learner.update(slot_for(learner, 0), no_check)
        hashes.append(digests(learner))
        learner.close()
    assert hashes[0] == hashes[1]


def test_gradients_flow_back_through_time_until_an_episode_begins() -> None:
    policy = policy_with("gru")
    obs = torch.randn(5 * 2, *SPEC.obs_shape, requires_grad=True)
    starts = torch.zeros(5, 2, dtype=torch.bool)
    starts[3, 0] = True
    _, values = policy.unroll(obs, torch.randn(2, policy.memory_width), starts)
    (gradient,) = torch.autograd.grad(values.view(5, 2)[4].sum(), obs)
    reached = gradient.view(5, 2, -1).abs().sum(dim=2) > 0
    assert reached.tolist() == [[False, True]] * 3 + [[True, True]] * 2


def test_columns_stay_whole_by_hand() -> None:
    # Two shards of 3 columns and 2 env steps: column c has the rows c and 3 + c.
    rows = rows_of(torch.tensor([[2, 0], [1, 2]]), width=3, num_steps=2)
    assert rows.tolist() == [[2, 0, 5, 3], [1, 2, 4, 5]]
    assert [part.tolist() for part in cut(rows[0], most=2, length=2)] == [[2, 5], [0, 3]]
    assert [part.tolist() for part in cut(rows[0], most=100, length=2)] == [rows[0].tolist()]
    # A sequence that is longer than a micro-batch is not cut.
    assert [part.tolist() for part in cut(rows[0], most=1, length=2)] == [[2, 5], [0, 3]]


# Networks


def policy_with(
    kind: str, precision: str = "fp32", name: str = "auto", **keys: object
) -> ActorCritic:
    network = sections.network(name, memory=kind, memory_size=SIZE, **keys)
    images = name not in ("auto", "mlp")
    return build_policy(IMAGES if images else SPEC, network, precision, torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["auto", "mlp", "nature_cnn", "small_cnn", "impala_resnet"])
def test_every_network_takes_a_memory(kind: str, name: str) -> None:
    policy = policy_with(kind, name=name)
    num_trunks = 2 if name in ("auto", "mlp") else 1
    assert policy.memory_width == num_trunks * SIZE * (2 if kind == "lstm" else 1)
    spec = SPEC if num_trunks == 2 else IMAGES
    obs = torch.zeros(3, *spec.obs_shape)
    params, values, states = policy.step(obs, torch.zeros(3, policy.memory_width))
    assert (params.shape, values.shape) == ((3, 3), (3,))
    assert states.shape == (3, policy.memory_width)


def test_policy_and_value_of_one_trunk_share_a_cell() -> None:
    policy = policy_with("gru", name="mlp", separate_value=False)
    assert policy.memory_width == SIZE
    assert isinstance(policy.memory, Memory)
    assert len(policy.memory.cells) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cells_compute_in_float32(precision: str) -> None:
    policy = policy_with("lstm", precision)
    memory = policy.memory
    assert isinstance(memory, Memory)
    assert {p.dtype for p in memory.parameters()} == {torch.float32}
    assert {p.dtype for p in policy.trunk.parameters()} == {PRECISIONS[precision]}


@pytest.mark.parametrize("kind", KINDS)
def test_new_cells_are_orthogonal_and_remember(kind: str) -> None:
    policies = [
        initial_policies(SPEC, with_memory(kind), PPO, seed).state_dict() for seed in (1, 1, 2)
    ]
    same, other = ({n for n, a in policies[0].items() if a.equal(p[n])} for p in policies[1:])
    assert same == set(policies[0])
    for k in range(2):
        cell = f"0.memory.cells.{k}"
        weight = policies[0][f"{cell}.weight_hh"]
        torch.testing.assert_close(weight.T @ weight, torch.eye(SIZE))
        assert f"{cell}.weight_hh" not in other
        biases = policies[0][f"{cell}.bias_ih"].view(-1, SIZE)
        assert biases.sum(dim=1).tolist() == [0, SIZE, *[0] * (len(biases) - 2)]
        assert not policies[0][f"{cell}.bias_hh"].any()


def test_without_memory_a_network_has_the_parameters_that_it_had() -> None:
    names = initial_policies(SPEC, NETWORK, PPO, seed=1).state_dict().keys()
    assert not any("memory" in name for name in names)
    assert build_policy(SPEC, NETWORK, "fp32", torch.device("cpu")).memory_width == 0


def test_actors_keep_no_activations_for_a_memory() -> None:
    network = sections.network("nature_cnn")
    assert activation_layout(IMAGES, network, "fp32")
    assert not activation_layout(IMAGES, replace(network, memory="lstm"), "fp32")


# Keys


@pytest.mark.parametrize(("num_minibatches", "example"), [(16, None), (32, 16), (3, 1)])
def test_minibatches_take_whole_columns(num_minibatches: int, example: int | None) -> None:
    config = harness.small_config("terminating", "ppo")
    algo = replace(harness.PPO, num_minibatches=num_minibatches)
    config = replace(config, algo=algo, network=replace(config.network, memory="lstm"))
    if example is None:
        check_combinations(config)
        return
    with pytest.raises(ConfigError) as error:
        check_combinations(config)
    assert str(error.value) == (
        f"algo.num_minibatches={num_minibatches}: must divide 16 = actors.num_envs, because with "
        "network.memory=lstm a minibatch has whole rollouts of environments: "
        f"give {example}, for example"
    )
