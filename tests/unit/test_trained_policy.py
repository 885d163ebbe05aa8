"""A trained policy on raw observations: conversions, batches, seeds, and the scores of games."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from htsrl_cli.api import game_seed, load_policy
from htsrl_cli.checkpoints.file import Checkpoint, save_checkpoint
from htsrl_cli.checkpoints.store import CheckpointStore
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.errors import CheckpointError, UsageError
from htsrl_cli.evaluation.policy import Policy
from tests import sections
from tests.unit.test_evaluation import CARTPOLE, make_checkpoint, play
from tests.unit.test_gym_env import Echo
from tests.unit.test_gym_parts import Sampled
from tests.unit.test_players import play as play_team
from tests.unit.test_players import team_checkpoint, team_config

# Spaces in every form: an observation space and an action space.
VECTOR = spaces.Box(-2.0, 2.0, (3,))
SPACES: dict[str, tuple[spaces.Box, spaces.Space[Any]]] = {
    "coin": (VECTOR, spaces.Discrete(2)),
    "from-one": (VECTOR, spaces.Discrete(5, start=1)),
    "several": (spaces.Box(-2.0, 2.0, (2, 3)), spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]))),
    "floats": (spaces.Box(-1.0, 1.0, (3,), np.float64), spaces.Box(-0.25, 0.5, (2, 2))),
    "channels-first": (spaces.Box(0, 255, (3, 40, 44), np.uint8), spaces.Discrete(3)),
    "gray": (spaces.Box(0, 255, (40, 44), np.uint8), spaces.Discrete(3)),
}
PARTS: tuple[spaces.Space[Any], spaces.Space[Any]] = (
    spaces.Dict(
        height=spaces.Box(-1.0, 1.0, ()), inner=spaces.Tuple([VECTOR, spaces.Discrete(3, start=1)])
    ),
    spaces.Tuple([spaces.Dict(go=spaces.Discrete(3, start=-1)), spaces.MultiBinary(2)]),
)
gymnasium.register(
    "Raw-parts-v0",
    f"{Sampled.__module__}:Sampled",
    kwargs={"obs": PARTS[0], "action": PARTS[1]},
)
for name, (obs_space, action_space) in SPACES.items():
    gymnasium.register(
        f"Raw-{name}-v0",
        f"{Echo.__module__}:Echo",
        max_episode_steps=9,
        kwargs={"obs": obs_space, "action": action_space},
    )


def policy_of(env: EnvConfig, folder: Path, seed: int = 0, **actors: Any) -> Policy:
    """Returns the untrained policy of a run in an environment."""
    return stored(make_checkpoint(env, **actors), folder, seed)


def stored(checkpoint: Checkpoint, folder: Path, seed: int = 0, trusted: bool = False) -> Policy:
    path = folder / "policy.ckpt"
    save_checkpoint(path, checkpoint)
    return load_policy(path, seed, trusted=trusted)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_every_space_takes_observations_and_actions_as_they_are(
    name: str, greedy: bool, tmp_path: Path
) -> None:
    observed, taken = SPACES[name]
    policy = policy_of(sections.gym(f"Raw-{name}-v0"), tmp_path)
    observed.seed(3)
    batch = np.stack([observed.sample() for _ in range(11)])
    actions = policy.act(batch, greedy)
    assert all(action in taken for action in actions)
    again = load_policy(tmp_path / "policy.ckpt")
    alone = [again.act(obs, greedy) for obs in batch]
    assert all(action in taken for action in alone)
    assert np.array_equal(np.stack(alone), actions)
    # Any array-like will do.
    assert policy.act(batch[0].tolist(), greedy=True) in taken
    assert policy.act(torch.from_numpy(batch), greedy=True).shape == actions.shape


@pytest.mark.parametrize("greedy", [False, True])
def test_dicts_and_tuples_come_alone_and_in_batches(greedy: bool, tmp_path: Path) -> None:
    # Gymnasium itself makes the batches, as its vector environments do.
    space, moves = PARTS
    policy = policy_of(sections.gym("Raw-parts-v0"), tmp_path)
    space.seed(3)
    samples = [space.sample() for _ in range(5)]
    empty: Any = create_empty_array(space, 5)
    batch: Any = concatenate(space, samples, empty)
    actions = list(iterate(batch_space(moves, 5), policy.act(batch, greedy)))
    assert all(action in moves for action in actions)
    again = load_policy(tmp_path / "policy.ckpt")
    alone = [again.act(one, greedy) for one in samples]
    assert all(action in moves for action in alone)
    for one, other in zip(alone, actions, strict=True):
        np.testing.assert_array_equal(flatten(moves, one), flatten(moves, other))
    for wrong, words in (
        (samples, "must be a dict with the keys height, inner, but is a list of 5"),
        ({**batch, "height": np.zeros(4)}, "do not belong to one batch"),
        ({**samples[0], "height": np.zeros((2, 2))}, r'observation\["height"\] has the shape'),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            policy.act(wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_game_by_hand_has_the_score_of_an_evaluation(
    env_id: str, greedy: bool, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(sections.gym(env_id, max_episode_steps=30))
    expected = play(checkpoint, episodes=3, seed=5, greedy=greedy)
    # Sampled actions are those of game 0.
    for game, result in enumerate(expected if greedy else expected[:1]):
        policy = stored(checkpoint, tmp_path, seed=5)
        env = gymnasium.make(env_id, max_episode_steps=30)
        assert by_hand(policy, env, game_seed(game, 5), greedy) == result[::2]


def by_hand(policy: Policy, env: Any, seed: int, greedy: bool) -> tuple[float, int]:
    """Returns the raw score and the length of a game."""
    obs, _ = env.reset(seed=seed)
    score, length, over = 0.0, 0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs, greedy))
        score, length, over = score + float(np.mean(reward)), length + 1, terminated or truncated
    env.close()
    return score, length


def test_environments_of_htsrl_come_with_the_policy(tmp_path: Path) -> None:
    breakout = sections.atari("breakout", max_num_frames_per_episode=200)
    policy = policy_of(breakout, tmp_path)
    env = policy.make_env()
    obs, _ = env.reset(seed=1)
    assert obs.shape == (84, 84, 4)
    for _ in range(5):
        obs, *_ = env.step(policy.act(obs))
    assert policy.act(np.stack([obs, obs]), greedy=True).shape == (2, 1)
    env.close()
    # A picture of Gymnasium's own Atari is not what the policy was trained on.
    with pytest.raises(UsageError, match=r"one observation .* has \(84, 84, 4\)"):
        policy.act(np.zeros((210, 160, 3), np.uint8))
    with pytest.raises(UsageError, match="must be uint8, but is float64"):
        policy.act(obs / 255.0)


def test_the_environment_of_a_gym_run_has_the_runs_settings(tmp_path: Path) -> None:
    policy = policy_of(sections.gym("CartPole-v1", max_episode_steps=7), tmp_path)
    env = policy.make_env()
    assert isinstance(env, gymnasium.Env)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7


@pytest.mark.parametrize("policies", ["shared", "independent"])
def test_all_players_act_at_once(policies: str, tmp_path: Path) -> None:
    checkpoint = team_checkpoint(team_config(policies))
    policy = stored(checkpoint, tmp_path, seed=5)
    [expected] = play_team(checkpoint, episodes=1, seed=5)
    score, length = by_hand(policy, policy.make_env(), game_seed(0, 5), greedy=False)
    assert score == pytest.approx(expected.training_return)
    assert length == expected.length
    obs = np.zeros((4, 3, *policy.make_env().env_spec.obs_shape), np.float32)
    assert policy.act(obs).shape == (4, 3, 1)
    with pytest.raises(UsageError, match="one observation"):
        policy.act(obs[0, 0])


def test_the_seed_decides_which_actions_are_sampled(tmp_path: Path) -> None:
    obs = np.zeros((200, 4), np.float32)
    policy = policy_of(CARTPOLE, tmp_path, seed=1)
    first, second = policy.act(obs), policy.act(obs)
    assert set(first) == {0, 1}
    assert not np.array_equal(first, second)
    # Greedy actions draw nothing.
    again = policy_of(CARTPOLE, tmp_path, seed=1)
    greedy = again.act(obs, greedy=True)
    assert len(set(greedy)) == 1
    assert [again.act(obs).tolist(), again.act(obs).tolist()] == [first.tolist(), second.tolist()]
    assert policy_of(CARTPOLE, tmp_path, seed=2).act(obs).tolist() != first.tolist()


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (np.zeros(3), r"has the shape \(3,\), but one observation .* has \(4,\), and a batch"),
        (np.zeros((2, 2, 4)), r"has the shape \(2, 2, 4\)"),
        (np.zeros((0, 4)), r"has the shape \(0, 4\)"),
        (0.5, r"has the shape \(\)"),
        ([[1.0, 2.0], [3.0]], "inhomogeneous"),
        ([0.0, np.nan, 0.0, 0.0], "must be finite in float32, but contains nan"),
    ],
)
def test_observations_that_do_not_fit_are_refused_in_one_line(
    obs: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"^act: .*{words}") as caught:
        policy_of(CARTPOLE, tmp_path).act(obs)
    assert "\n" not in str(caught.value)


def test_the_newest_checkpoint_of_a_folder_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(500, 1.0, make_checkpoint(CARTPOLE))
    store.save(1234, 0.5, make_checkpoint(CARTPOLE))
    for source in (tmp_path, str(tmp_path), store.path(1234)):
        policy = load_policy(source)
        assert (policy.checkpoint, policy.env_steps) == (store.path(1234), 1234)
    assert load_policy(store.path(500)).env_steps == 500


def test_a_checkpoint_that_does_not_fit_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(CARTPOLE)
    del checkpoint.arrays["learner/params/0.policy_head.bias"]
    with pytest.raises(CheckpointError, match=r"has no parameter 0\.policy_head\.bias"):
        stored(checkpoint, tmp_path)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        load_policy(tmp_path)


def test_torch_keeps_its_settings(tmp_path: Path) -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.get_deterministic_debug_mode(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        )

    before = settings()
    try:
        torch.set_num_threads(2)
        torch.set_deterministic_debug_mode("warn")
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = True
        chosen = settings()
        assert chosen[:3] == (2, 1, True)
        policy = policy_of(CARTPOLE, tmp_path)
        policy.act(np.zeros(4))
        policy.act(np.zeros(4), greedy=True)
        with pytest.raises(UsageError):
            policy.act(np.zeros(3))
        assert settings() == chosen
    finally:
        torch.set_num_threads(int(str(before[0])))
        torch.set_deterministic_debug_mode(int(str(before[1])))
        torch.backends.cudnn.benchmark = bool(before[2])
        torch.backends.cudnn.allow_tf32 = bool(before[3])
        torch.backends.cuda.matmul.allow_tf32 = bool(before[4])
