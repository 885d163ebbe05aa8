"""Running statistics of observations and rewards: exactness, versions, evaluation and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from htsrl_cli.api import game_seed
from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.config.checks import check_combinations
from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.envs.base import Array, EnvSpec
from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.errors import ConfigError
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.normalizer import ObsNormalizer, RewardNormalizer, RunningMoments
from htsrl_cli.sampling.inference import Inference, InferenceSetup
from htsrl_cli.storage.slot import Slot
from tests import sections
from tests.unit.learner_references import A2C, NETWORK, PPO, SPEC, B, T, make_slot
from tests.unit.learners import assert_same_state, make_learner, no_check
from tests.unit.test_evaluation import make_checkpoint, play
from tests.unit.test_gym_env import Echo
from tests.unit.test_trained_policy import by_hand, stored

BOTH = replace(SPEC, normalize_obs=True, normalize_reward=True)


def policy_of(learner: Learner) -> ActorCritic:
    (policy,) = learner.policies
    assert isinstance(policy, ActorCritic)
    return policy


def moments_of(learner: Learner, name: str) -> RunningMoments:
    found = getattr(policy_of(learner), name)
    assert isinstance(found, RunningMoments)
    return found


def test_without_the_keys_a_policy_has_no_statistics() -> None:
    assert not list(policy_of(make_learner(PPO)).buffers())
    assert set(make_learner(PPO).state().arrays) < set(make_learner(PPO, spec=BOTH).state().arrays)


# The moments themselves


def test_moments_equal_those_of_numpy_after_a_million_arrays() -> None:
    # The mean is large against the deviation, and differs between columns.
    rng = np.random.default_rng(0)
    moments, seen = RunningMoments((3,)), []
    offsets = 1000.0 + np.arange(16.0)[:, None]
    for _ in range(125):
        x = (rng.normal(size=(500, 16, 3)) * [0.1, 1.0, 30.0] + offsets).astype(np.float32)
        seen.append(x.astype(np.float64))
        moments.merge(500, seen[-1].mean(0), ((seen[-1] - seen[-1].mean(0)) ** 2).sum(0))
    whole = np.concatenate(seen).reshape(-1, 3)
    assert int(moments.count) == len(whole) == 1_000_000
    np.testing.assert_allclose(moments.mean.numpy(), whole.mean(0), rtol=1e-12)
    variance = (moments.deviations / moments.count).numpy()
    np.testing.assert_allclose(variance, whole.var(0), rtol=1e-9)
    factor = moments.factor()
    assert factor.dtype == torch.float32
    np.testing.assert_allclose(factor.numpy(), 1 / whole.std(0), rtol=1e-6)


def test_numbers_are_normalized_and_clipped() -> None:
    obs = ObsNormalizer((2,))
    raw = torch.tensor([[1.0, 200.0], [-3.0, 0.5]])
    torch.testing.assert_close(obs(raw), torch.tensor([[1.0, 10.0], [-3.0, 0.5]]))
    obs.merge(4, np.array([[1.0, 2.0]]), np.array([[16.0, 1.0]]))
    torch.testing.assert_close(obs(raw), torch.tensor([[0.0, 10.0], [-2.0, -3.0]]))
    rewards = RewardNormalizer()
    rewards.merge(4, np.array([7.0]), np.array([16.0]))
    torch.testing.assert_close(rewards(torch.tensor([3.0, -90.0])), torch.tensor([1.5, -10.0]))
    # A number that never changes has no deviation to divide by.
    still = ObsNormalizer((1,))
    still.merge(4, np.array([[5.0]]), np.array([[0.0]]))
    assert still(torch.tensor([[5.0], [6.0]])).tolist() == [[0.0], [10.0]]


# The learner


def slots(count: int) -> list[Slot]:
    return [make_slot(SPEC, seed) for seed in range(count)]


def test_the_learner_counts_every_row_once() -> None:
    learner = make_learner(A2C, spec=BOTH)
    seen = []
    for slot in slots(4):
        learner.update(slot, no_check)
        seen.append(slot.obs[:-1].reshape(-1, *SPEC.obs_shape))
        whole = np.concatenate(seen).astype(np.float64)
        moments = moments_of(learner, "obs_normalizer")
        assert int(moments.count) == len(whole) == len(seen) * T * B
        np.testing.assert_allclose(moments.mean.numpy(), whole.mean(0), rtol=1e-9, atol=1e-12)
        variance = (moments.deviations / moments.count).numpy()
        np.testing.assert_allclose(variance, whole.var(0), rtol=1e-9)


def test_returns_go_on_over_slots_and_end_with_episodes() -> None:
    learner = make_learner(A2C, spec=BOTH)
    current, seen = np.zeros(B), []
    for slot in slots(4):
        learner.update(slot, no_check)
        for t in range(T):
            for c in range(B):
                current[c] = current[c] * A2C.gamma + slot.rewards[t, c]
            seen.append(current.copy())
            current[slot.terminated[t] | slot.truncated[t]] = 0.0
    moments = moments_of(learner, "reward_normalizer")
    variance = float(moments.deviations / moments.count)
    assert variance == pytest.approx(np.var(seen), rel=1e-9)


def test_independent_policies_count_their_own_columns() -> None:
    spec = replace(BOTH, num_players=2)
    learner = make_learner(replace(A2C, policies="independent"), spec=spec)
    (slot,) = slots(1)
    learner.update(slot, no_check)
    for k, policy in enumerate(learner.policies):
        moments = policy.obs_normalizer
        assert isinstance(moments, ObsNormalizer)
        own = slot.obs[:-1, k::2].reshape(-1, *SPEC.obs_shape).astype(np.float64)
        assert int(moments.count) == len(own)
        np.testing.assert_allclose(moments.mean.numpy(), own.mean(0), rtol=1e-9, atol=1e-12)


def test_an_update_uses_the_statistics_from_which_it_starts() -> None:
    # An update with these rewards and one with the rewards divided beforehand are the same.
    spec = replace(SPEC, normalize_reward=True)
    first, second = slots(2)
    normalizing = make_learner(A2C, spec=spec)
    normalizing.update(first, no_check)
    factor = float(moments_of(normalizing, "reward_normalizer").factor())
    divided = Slot({name: array.copy() for name, array in second.arrays().items()})
    divided.rewards[:] = (second.rewards * np.float32(factor)).clip(-10, 10)
    plain = make_learner(A2C)
    unit = Slot({name: array.copy() for name, array in first.arrays().items()})
    unit.rewards[:] = first.rewards.clip(-10, 10)
    plain.update(unit, no_check)
    normalizing.update(second, no_check)
    plain.update(divided, no_check)
    for name, array in plain.parameters().items():
        np.testing.assert_allclose(normalizing.parameters()[name], array, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("algo", [A2C, PPO], ids=["a2c", "ppo"])
def test_actors_get_the_statistics_with_their_version(algo: AlgoConfig) -> None:
    learner = make_learner(algo, spec=BOTH)
    inference = Inference(InferenceSetup(BOTH, NETWORK, algo, 4, False, "cpu", "fp32", False))
    inference.obs[:] = obs = make_slot(SPEC, 9).obs[0, :4]
    for slot in slots(2):
        learner.update(slot, no_check)
        inference.load(learner.parameters())
        with torch.no_grad():
            _, expected = policy_of(learner)(torch.from_numpy(obs))
        assert torch.equal(inference.run(0)[2], expected)
        before = learner.previous_parameters()["0.obs_normalizer.count"]
        assert learner.parameters()["0.obs_normalizer.count"] == before + T * B


def test_a_restored_learner_goes_on_alike() -> None:
    one, other = make_learner(PPO, spec=BOTH), make_learner(PPO, spec=BOTH)
    first, second, third = slots(3)
    one.update(first, no_check)
    one.update(second, no_check)
    other.load_state(one.state())
    assert_same_state(one, other)
    one.update(third, no_check)
    other.update(third, no_check)
    assert_same_state(one, other)


# Evaluation and policies


def normalizing(env_id: str, **changes: Any) -> Checkpoint:
    """Returns the checkpoint of an untrained policy that has seen some observations."""
    checkpoint = make_checkpoint(sections.gym(env_id, normalize_obs=True, **changes))
    env = GymEnv(sections.gym(env_id))
    policies = {f"learner/params/0.obs_normalizer.{name}": array for name, array in _seen(env)}
    checkpoint.arrays.update(policies)
    return checkpoint


def _seen(env: GymEnv) -> list[tuple[str, Array]]:
    moments = ObsNormalizer(env.env_spec.obs_shape)
    observations = np.stack([env.reset(seed=i)[0] for i in range(50)]).astype(np.float64)
    deviations = ((observations - observations.mean(0)) ** 2).sum(0)
    moments.merge(50, observations.mean(0)[None], deviations[None])
    return [(name, buffer.numpy()) for name, buffer in moments.named_buffers()]


@pytest.mark.parametrize("greedy", [False, True])
def test_a_game_by_hand_has_the_score_of_an_evaluation(greedy: bool, tmp_path: Path) -> None:
    checkpoint = normalizing("Pendulum-v1", max_episode_steps=30)
    expected, *_ = play(checkpoint, episodes=2, seed=5, greedy=greedy)
    policy = stored(checkpoint, tmp_path, seed=5)
    env = gymnasium.make("Pendulum-v1", max_episode_steps=30)
    assert by_hand(policy, env, game_seed(0, 5), greedy) == expected[::2]
    # Observations of an evaluation change nothing.
    assert play(checkpoint, episodes=1, seed=5, greedy=greedy)[0] == expected
    raw = make_checkpoint(sections.gym("Pendulum-v1", max_episode_steps=30))
    assert play(raw, episodes=1, seed=5, greedy=greedy)[0] != expected


# Refusals, in one line


def test_bytes_are_not_normalized() -> None:
    name = "Bytes-v0"
    kwargs = {"obs": spaces.Box(0, 255, (40, 44, 3), np.uint8), "action": spaces.Discrete(3)}
    gymnasium.register(name, f"{Echo.__module__}:Echo", kwargs=kwargs)
    with pytest.raises(ConfigError, match=r"^env\.normalize_obs=true: .*divided by 255: leave"):
        GymEnv(sections.gym(name, normalize_obs=True))


def test_returns_need_the_order_of_each_environment() -> None:
    env = sections.gym("Pendulum-v1", normalize_obs=True, normalize_reward=True)
    config = sections.train(
        env=env, algo=sections.impala(), runner=sections.runner("async"), total_steps=10**6
    )
    with pytest.raises(ConfigError, match=r"^env\.normalize_reward=true: .*or choose runner=hts$"):
        check_combinations(config)
    check_combinations(replace(config, env=replace(env, normalize_reward=False)))


def test_the_spec_says_what_is_normalized() -> None:
    spec: EnvSpec = GymEnv(sections.gym("Pendulum-v1", normalize_reward=True)).env_spec
    assert (spec.normalize_obs, spec.normalize_reward) == (False, True)
