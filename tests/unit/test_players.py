"""Tests of several players: which policy acts for whom, and which policy learns from whom.

Comparisons are bit by bit, except for norms that are recomputed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.state import State
from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.config.plain import to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import CheckpointError, NonFiniteError
from htsrl_cli.evaluation import play as evaluation
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.activations import Layer, relu_layer
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.distributions import sample
from htsrl_cli.networks.registry import activation_layout, build_policies, initial_policies
from htsrl_cli.sampling import inference as inference_module
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.sampling.inference import InferenceSetup, has_free_rows
from htsrl_cli.sampling.requests import Request
from htsrl_cli.seeding import Purpose, draw_noise, generator, reset_seed
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.ring import Ring
from htsrl_cli.storage.slot import Episode, Slot
from htsrl_cli.workers.board import Board
from tests import sections
from tests.unit.learner_references import A2C, IMAGES, NETWORK, PPO, SEED, SPEC, make_slot
from tests.unit.learners import assert_same_state, make_learner, no_check
from tests.unit.test_learner import applied_norms

K = 3
TEAM = replace(SPEC, num_players=K)
TEAM_IMAGES = replace(IMAGES, num_players=K)


@pytest.fixture(autouse=True)
def _torch_as_in_a_run() -> None:
    set_up_torch()


def independent(algo: AlgoConfig) -> AlgoConfig:
    return replace(algo, policies="independent")


# Learning


def columns_of(slot: Slot, policy: int) -> Slot:
    """Returns a slot with the columns of one policy only."""
    arrays = slot.arrays().items()
    return Slot({name: np.ascontiguousarray(array[:, policy::K]) for name, array in arrays})


def parameters_of(learner: Learner, policy: int) -> dict[str, Array]:
    """Returns θ[j], θ[j-1] and the optimizer's state of one policy, named as if it were alone."""
    arrays = learner.state().arrays
    marked = {name: name.split("/") for name in arrays}
    return {
        "/".join([*path[:-1], path[-1].replace(f"{policy}.", "0.", 1)]): arrays[name]
        for name, path in marked.items()
        if path[-1].startswith(f"{policy}.")
    }


def lone_learner(policy: int, algo: AlgoConfig, spec: EnvSpec, precision: str) -> Learner:
    """Returns a learner for one player that starts with the parameters of policy `policy`."""
    learner = make_learner(algo, spec=spec, micro_batch=3, precision=precision)
    team = replace(spec, num_players=K)
    network = initial_policies(team, NETWORK, independent(algo), SEED)[policy]
    begin = {f"0.{name}": p.detach().numpy() for name, p in network.named_parameters()}
    arrays = {f"{kind}/{n}": a for kind in ("params", "previous") for n, a in begin.items()}
    learner.load_state(State(arrays, {"num_updates": 0}))
    return learner


CASES = [
    pytest.param(TEAM, A2C, "fp32", id="a2c"),
    pytest.param(TEAM, PPO, "fp32", id="ppo"),
    pytest.param(TEAM_IMAGES, A2C, "fp32", id="a2c-images"),
    pytest.param(TEAM_IMAGES, PPO, "bf16", id="ppo-images-bf16"),
]


@pytest.mark.parametrize(("spec", "algo", "precision"), CASES)
def test_an_independent_policy_learns_as_if_it_were_alone(
    spec: EnvSpec, algo: AlgoConfig, precision: str
) -> None:
    # Policy k of K learns from columns k, k + K, ...; minibatches, clipping and schedules included.
    team = make_learner(independent(algo), spec=spec, micro_batch=3, precision=precision)
    alone = replace(spec, num_players=1)
    learners = [lone_learner(k, algo, alone, precision) for k in range(K)]
    for number in range(3):
        slot = make_slot(spec, number)
        logged = team.update(slot, no_check)
        logs = [learner.update(columns_of(slot, k), no_check) for k, learner in enumerate(learners)]
        for k, learner in enumerate(learners):
            expected, got = learner.state().arrays, parameters_of(team, k)
            assert expected.keys() == got.keys()
            for name, array in expected.items():
                assert array.tobytes() == got[name].tobytes(), (number, k, name)
        for name in ("loss/policy", "loss/value", "loss/entropy", "learner/grad_norm"):
            assert logged[name] == pytest.approx(np.mean([log[name] for log in logs]), rel=1e-4)
    assert parameters_of(team, 0).keys() == parameters_of(team, 1).keys()
    heads = [parameters_of(team, k)["params/0.policy_head.weight"] for k in (0, 1)]
    assert not np.array_equal(heads[0], heads[1])


@pytest.mark.parametrize("algo", [A2C, PPO], ids=["a2c", "ppo"])
def test_a_shared_policy_learns_from_all_players(algo: AlgoConfig) -> None:
    # The learner treats all columns alike, whichever player they belong to.
    team, alone = make_learner(algo, spec=TEAM), make_learner(algo, spec=SPEC)
    for number in range(2):
        for learner in (team, alone):
            learner.update(make_slot(SPEC, number), no_check)
    assert_same_state(team, alone)


@pytest.mark.parametrize("algo", [A2C, PPO], ids=["a2c", "ppo"])
def test_clipping_does_not_depend_on_the_other_policies(algo: AlgoConfig) -> None:
    # The gradient of policy 0 grows beyond its own limit and the others'.
    small = replace(independent(algo), max_grad_norm=1e3)
    calm, wild = make_learner(small, spec=TEAM), make_learner(small, spec=TEAM)
    calm.update(make_slot(TEAM, 0), no_check)
    slot = make_slot(TEAM, 0)
    slot.rewards[:, 0::K] *= 1e6
    assert wild.update(slot, no_check)["learner/grad_norm"] > 1e3
    for k in range(K):
        same = [
            array.tobytes() == parameters_of(wild, k)[name].tobytes()
            for name, array in parameters_of(calm, k).items()
        ]
        assert all(same) == (k > 0)


def test_every_policy_is_clipped_to_the_whole_norm() -> None:
    learner = make_learner(replace(independent(PPO), max_grad_norm=1e-4), spec=TEAM)
    with applied_norms() as norms:
        learner.update(make_slot(TEAM, 0), no_check)
    assert norms == pytest.approx([K**0.5 * 1e-4] * len(norms), rel=1e-2)


@pytest.mark.parametrize(("spec", "algo", "precision"), CASES)
def test_threads_and_restores_change_no_bit(
    spec: EnvSpec, algo: AlgoConfig, precision: str
) -> None:
    team = independent(algo)
    one, other, restored = (
        make_learner(team, spec=spec, micro_batch=3, num_threads=n, precision=precision)
        for n in (1, 3, 2)
    )
    for number in range(2):
        slot = make_slot(spec, number)
        assert one.update(slot, no_check) == other.update(slot, no_check)
    restored.load_state(one.state())
    for learner in (one, other, restored):
        learner.update(make_slot(spec, 2), no_check)
    assert_same_state(one, other)
    assert_same_state(one, restored)


def test_a_policy_that_is_not_finite_is_named_and_none_is_updated() -> None:
    learner, twin = (make_learner(independent(A2C), spec=TEAM) for _ in range(2))
    slot = make_slot(TEAM, 1)
    slot.obs[2, 2, 0] = np.inf
    with pytest.raises(
        NonFiniteError, match=r"not finite: gradient of 2\.trunk\.layers\.0\.weight"
    ):
        learner.update(slot, no_check)
    assert_same_state(learner, twin)


# Acting

T, B = 2, 6 * K
VECTORS = EnvSpec((6,), "float32", ActionSpec("categorical", sizes=(3, 2)), K)
EVERYTHING = [(c, t) for c in range(B) for t in (0, 1, T, -1)]


def team_setup(policies: str = "independent", *, fixed_rows: bool = False) -> InferenceSetup:
    algo = sections.a2c(policies=policies)
    return InferenceSetup(
        VECTORS, sections.network(), algo, 4, fixed_rows, "cpu", "fp32", keeps_activations=False
    )


def store_of(policies: nn.ModuleList) -> ParameterStore:
    """Returns a store whose version 0 has the parameters of these policies."""
    arrays = arrays_of(policies)
    store = ParameterStore({name: (a.shape, a.dtype.name) for name, a in arrays.items()})
    for name, array in arrays.items():
        store.place(0)[name][...] = array
    store.publish(0)
    return store


def arrays_of(policies: nn.ModuleList) -> dict[str, Array]:
    """Returns the parameters by name."""
    return {name: t.contiguous().numpy() for name, t in policies.state_dict().items()}


class Stage:
    """A ring full of random observations, and an actor whose policies have clear preferences."""

    def __init__(self, setup: InferenceSetup, policies: nn.ModuleList) -> None:
        self.ring = Ring(setup.spec, T, B)
        rng = np.random.default_rng(0)
        self.ring.begin(0, np.zeros((B, 6)), rng.random((T, B, 2), dtype=np.float32))
        self.slot = self.ring.slot(0)
        for obs in (self.slot.obs, self.ring.final_obs):
            obs[:] = rng.standard_normal(obs.shape)
        self.actor = Actor(setup, self.ring, store_of(policies), Board(1), 0)

    def answers(self, parts: Sequence[Sequence[Request]]) -> dict[str, bytes]:
        for part in parts:
            self.actor.serve(part)
        names = ("actions", "log_probs", "values", "final_values")
        return {name: self.slot.arrays()[name].tobytes() for name in names}


def team_policies(algo: AlgoConfig) -> nn.ModuleList:
    policies = initial_policies(VECTORS, sections.network(), algo, SEED)
    for policy in policies:
        assert isinstance(policy, ActorCritic)
        with torch.no_grad():
            policy.policy_head.weight.mul_(100)
    return policies


def constants(policies: nn.ModuleList) -> nn.ModuleList:
    """Makes policy k value every observation at k + 1."""
    with torch.no_grad():
        for k, policy in enumerate(policies):
            assert isinstance(policy, ActorCritic)
            policy.value_head.weight.zero_()
            policy.value_head.bias.fill_(k + 1.0)
    return policies


class Positional(ActorCritic):
    """A policy whose values depend on the position in the batch."""

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        params, values = super().forward(obs, layer)
        return params, values + torch.arange(len(values)) / 8


@pytest.mark.parametrize("fixed_rows", [False, True], ids=["free", "fixed_rows"])
def test_policy_c_modulo_k_serves_column_c(fixed_rows: bool) -> None:
    setup = team_setup(fixed_rows=fixed_rows)
    stage = Stage(setup, constants(team_policies(setup.algo)))
    stage.answers([EVERYTHING[::-1]])
    expected = np.arange(B) % K + 1.0
    assert (stage.slot.values == expected).all()
    assert (stage.slot.final_values[0] == expected).all()


def test_a_shared_policy_serves_every_column() -> None:
    setup = team_setup("shared")
    stage = Stage(setup, constants(team_policies(setup.algo)))
    stage.answers([EVERYTHING])
    assert (stage.slot.values == 1.0).all()


def test_fixed_rows_are_shared_out_among_a_policys_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Column c has row c // K % batch in its policy's passes, the number of its environment.

    def build(spec: EnvSpec, network: NetworkConfig, algo: AlgoConfig, *how: Any) -> nn.ModuleList:
        policies = nn.ModuleList()
        for policy in build_policies(spec, network, algo, *how):
            assert isinstance(policy, ActorCritic)
            policies.append(Positional(spec, policy.trunk, policy.value_trunk))
        return policies

    monkeypatch.setattr(inference_module, "build_policies", build)
    setup = team_setup(fixed_rows=True)
    policies = constants(team_policies(setup.algo))
    assert len(policies) == K
    assert not has_free_rows(setup, arrays_of(policies))
    columns = np.arange(B)
    expected = columns % K + 1 + columns // K % setup.batch / 8
    for parts in in_parts():
        stage = Stage(setup, policies)
        stage.answers(parts)
        assert (stage.slot.values == expected).all()


def in_parts() -> list[list[list[Request]]]:
    """Returns all requests, at once and in random orders and parts."""
    rng = np.random.default_rng(1)
    found: list[list[list[Request]]] = [[EVERYTHING]]
    for _ in range(3):
        order = [EVERYTHING[i] for i in rng.permutation(len(EVERYTHING))]
        cuts = sorted(rng.choice(np.arange(1, len(order)), 7, replace=False).tolist())
        found.append([order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)])
    return found


@pytest.mark.parametrize("fixed_rows", [False, True], ids=["free", "fixed_rows"])
def test_a_policy_learns_from_the_activations_of_its_own_columns(fixed_rows: bool) -> None:
    # Passes and micro-batches both have 4 rows, so the bits are those of the learner's own pass.
    algo = independent(A2C)
    expected, got = (make_learner(algo, spec=TEAM_IMAGES, micro_batch=4) for _ in range(2))
    random = make_slot(TEAM_IMAGES, 0)
    num_steps, num_columns = random.rewards.shape
    layout = activation_layout(TEAM_IMAGES, NETWORK, "fp32")
    ring = Ring(TEAM_IMAGES, num_steps, num_columns, layout)
    for name, array in ring.slot(0).arrays().items():
        array[:] = random.arrays()[name]
    ring.begin(0, random.obs[0], random.noise)
    setup = InferenceSetup(
        TEAM_IMAGES, NETWORK, algo, 4, fixed_rows, "cpu", "fp32", keeps_activations=True
    )
    actor = Actor(setup, ring, store_of(got.policies), Board(1), 0)
    actor.serve([(c, t) for c in range(num_columns) for t in range(num_steps + 1)])
    assert len(ring.activations(0)) == 4
    logged = expected.update(ring.slot(0), no_check)
    assert got.update(ring.slot(0), no_check, ring.activations(0)) == logged
    assert_same_state(expected, got)


@pytest.mark.parametrize("policies", ["shared", "independent"])
def test_a_players_answers_do_not_depend_on_its_company(policies: str) -> None:
    setup = team_setup(policies)
    networks = team_policies(setup.algo)
    assert has_free_rows(setup, arrays_of(networks))
    expected = Stage(setup, networks).answers([[request] for request in EVERYTHING])
    for fixed_rows in (False, True):
        each = team_setup(policies, fixed_rows=fixed_rows)
        for parts in in_parts():
            assert Stage(each, networks).answers(parts) == expected


# Synthetic environments


def test_count_tells_every_players_column() -> None:
    env = make_env(sections.synthetic("count", episode_length=2, num_players=K), 2)
    assert env.env_spec.num_players == K
    assert env.reset(seed=0)[0].tolist() == [[6, 0, 0], [7, 0, 0], [8, 0, 0]]
    obs, reward, *_ = env.step(np.zeros((K, 1), np.int64))
    assert obs.tolist() == [[6, 0, 1], [7, 0, 1], [8, 0, 1]]
    assert np.asarray(reward).tolist() == [60_001, 70_001, 80_001]
    *_, info = env.step(np.zeros((K, 1), np.int64))
    assert info["episode"] == {"r": 140_003.0, "l": 2}, "the mean player's return"


def test_sleep_pays_every_player_for_its_own_choice() -> None:
    env = make_env(sections.synthetic("sleep", num_players=K), 0)
    obs, _ = env.reset(seed=3)
    for _ in range(10):
        best = obs.argmax(axis=1)
        actions = np.where(np.arange(K) == 1, best, (best + 1) % 4)
        obs, reward, *_ = env.step(actions[:, None])
        assert np.asarray(reward).tolist() == [0, 1, 0]


def test_several_players_are_restored() -> None:
    env, other = (make_env(sections.synthetic("sleep", num_players=K), 0) for _ in range(2))
    env.reset(seed=1)
    obs, *_ = env.step(np.zeros((K, 1), np.int64))
    assert np.array_equal(other.set_state(env.get_state()), obs)
    for _ in range(5):
        futures = [each.step(np.ones((K, 1), np.int64)) for each in (env, other)]
        assert futures[0][0].tobytes() == futures[1][0].tobytes()
        assert np.array_equal(futures[0][1], futures[1][1])


# Evaluation


def team_config(policies: str, memory: str = "none") -> TrainConfig:
    return sections.train(
        env=sections.synthetic("sleep", num_players=K, episode_length=12),
        algo=sections.ppo(policies=policies),
        network=sections.network(memory=memory, memory_size=8),
        actors=sections.actors(device="cpu", inference_batch=4),
        learner=sections.learner(),
        runner=sections.runner(),
        checkpoint=sections.checkpoint(),
        log=sections.log(),
    )


def team_checkpoint(config: TrainConfig) -> Checkpoint:
    """Returns a checkpoint of a run with untrained parameters that have clear preferences."""
    spec = make_env(config.env, 0).env_spec
    policies = initial_policies(spec, config.network, config.algo, seed=1)
    for policy in policies:
        assert isinstance(policy, ActorCritic)
        with torch.no_grad():
            policy.policy_head.weight.mul_(100)
    arrays = {f"learner/params/{n}": array for n, array in arrays_of(policies).items()}
    meta = {"config": to_plain(config), "env_steps": 0, "env_spec": asdict(spec)}
    return Checkpoint(arrays, json.loads(json.dumps(meta)))


def play(checkpoint: Checkpoint, side_by_side: int | None = None, **config: Any) -> list[Episode]:
    keys = sections.eval("", **{"greedy": False} | config)
    return evaluation.play(checkpoint, keys, Path("some.ckpt"), side_by_side)


def slowly(checkpoint: Checkpoint, config: TrainConfig, number: int) -> Episode:
    """Plays one game in the simplest way, player by player."""
    env = make_env(config.env, 0)
    cpu = torch.device("cpu")
    policies = build_policies(env.env_spec, config.network, config.algo, "fp32", cpu)
    with torch.no_grad():
        for name, parameter in policies.named_parameters():
            parameter.copy_(torch.from_numpy(checkpoint.arrays[f"learner/params/{name}"]))
    rng = generator(5, Purpose.EVALUATION_ACTIONS, number)
    obs, _ = env.reset(seed=reset_seed(5, number, 0, Purpose.EVALUATION_RESETS))
    total, info = 0.0, dict[str, Any]()
    while not info:
        noise = draw_noise(rng, (K, 1), "categorical")
        actions = np.zeros((K, 1), np.int64)
        for player in range(K):
            rows = torch.from_numpy(np.repeat(obs[[player]], config.actors.inference_batch, axis=0))
            with torch.no_grad():
                params, _ = policies[player % len(policies)](rows)
                chosen = sample(
                    env.env_spec.actions, params[:1], torch.from_numpy(noise[[player]])
                )[0]
            actions[player] = chosen.numpy()[0]
        obs, reward, *_, info = env.step(actions)
        total += float(np.mean(reward))
    return Episode(info["episode"]["r"], total, info["episode"]["l"])


@pytest.mark.parametrize("policies", ["shared", "independent"])
def test_games_of_several_players_do_not_depend_on_the_games_beside(policies: str) -> None:
    # Passes have 4 rows, so the players of a game are in different passes.
    config = team_config(policies)
    checkpoint = team_checkpoint(config)
    expected = [slowly(checkpoint, config, number) for number in range(5)]
    assert len(set(expected)) > 1
    for side_by_side in (None, 1, 2, 5):
        assert play(checkpoint, side_by_side, episodes=5, seed=5) == expected
    greedy = play(checkpoint, episodes=5, seed=5, greedy=True)
    assert play(checkpoint, 4, episodes=5, seed=5, greedy=True) == greedy


def test_a_checkpoint_of_one_policy_is_none_of_three() -> None:
    checkpoint = team_checkpoint(team_config("shared"))
    checkpoint.meta["config"]["algo"]["policies"] = "independent"
    with pytest.raises(CheckpointError, match=r"no parameter 1\."):
        play(checkpoint, episodes=1)
