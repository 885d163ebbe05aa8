"""Evaluations and trained policies with a memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from htsrl_cli.api import game_seed, load_policy
from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.envs.base import Array
from htsrl_cli.errors import UsageError
from htsrl_cli.evaluation import passes as passes_module
from htsrl_cli.evaluation.passes import Passes
from htsrl_cli.evaluation.policy import Policy
from htsrl_cli.networks import recurrent
from tests import harness, sections
from tests.harness import STEPS_PER_ROLLOUT
from tests.unit.recurrent_references import Counting
from tests.unit.test_evaluation import CARTPOLE, LivesEnv, lives_envs, make_checkpoint, play
from tests.unit.test_players import play as play_team
from tests.unit.test_players import team_checkpoint, team_config
from tests.unit.test_trained_policy import stored

__all__ = ["lives_envs"]

KINDS = pytest.mark.parametrize("kind", ["lstm", "gru"])


@KINDS
@pytest.mark.parametrize("has_free_rows", [True, False])
def test_scores_do_not_depend_on_the_games_beside(
    kind: str, has_free_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes_module, "has_free_rows", lambda *_: has_free_rows)
    checkpoint = make_checkpoint(CARTPOLE, memory=kind)
    expected = play(checkpoint, 1, episodes=7)
    assert len(set(expected)) > 1
    assert play(checkpoint, 3, episodes=7) == expected
    assert play(checkpoint, 8, episodes=4) == expected[:4]
    assert play(make_checkpoint(CARTPOLE), 3, episodes=7) != expected


@KINDS
def test_a_game_by_hand_has_the_score_of_an_evaluation(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(CARTPOLE, memory=kind)
    expected = play(checkpoint, episodes=4, seed=5, greedy=True)
    policy = stored(checkpoint, tmp_path)
    env, remembered = gymnasium.make("CartPole-v1"), []
    for resets in (True, False):
        policy.reset()
        lengths = []
        for game in range(4):
            if resets:
                policy.reset()
            (obs, _), over = env.reset(seed=game_seed(game, 5)), False
            lengths.append(0)
            while not over:
                obs, _, terminated, truncated, _ = env.step(policy.act(obs, greedy=True))
                lengths[-1] += 1
                over = terminated or truncated
        remembered.append(lengths)
    assert remembered[0] == [episode.length for episode in expected]
    assert remembered[1] != remembered[0], "without reset, the policy remembers the game before"


def states_of(policy: Policy) -> Array:
    assert policy._memories is not None
    return policy._memories.copy()


def test_a_batch_remembers_row_by_row(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(CARTPOLE, memory="lstm")
    together, alone = stored(checkpoint, tmp_path), load_policy(tmp_path / "policy.ckpt")
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(6, 5, 4)).astype(np.float32)
    ended = np.array([False, True, False, True, False])
    for t, obs in enumerate(steps):
        if t == 3:
            together.reset(ended)
        together.act(obs, greedy=True)
    for row in range(5):
        alone.reset()
        for t, obs in enumerate(steps[:, row]):
            if t == 3 and ended[row]:
                alone.reset()
            alone.act(obs, greedy=True)
        assert states_of(alone)[0].tobytes() == states_of(together)[row].tobytes()
    assert states_of(together).any(axis=(1, 2)).all()


def test_another_number_of_episodes_needs_a_reset(tmp_path: Path) -> None:
    policy = stored(make_checkpoint(CARTPOLE, memory="gru"), tmp_path)
    policy.act(np.zeros((3, 4)))
    with pytest.raises(UsageError, match=r"there are 2 observations, but .* remembers 3 episodes"):
        policy.act(np.zeros((2, 4)))
    with pytest.raises(UsageError, match=r"^reset: "):
        policy.reset([3])
    policy.reset()
    policy.act(np.zeros((2, 4)))
    # Without memory, there is nothing to forget.
    policy = stored(make_checkpoint(CARTPOLE), tmp_path)
    policy.act(np.zeros((3, 4)))
    policy.reset([0])
    policy.act(np.zeros((2, 4)))


@pytest.mark.parametrize("policies", ["shared", "independent"])
def test_every_player_has_its_own_memory(policies: str, tmp_path: Path) -> None:
    checkpoint = team_checkpoint(team_config(policies, memory="gru"))
    policy = stored(checkpoint, tmp_path, seed=5)
    [expected] = play_team(checkpoint, episodes=1, seed=5)
    env = policy.make_env()
    (obs, _), score, over = env.reset(seed=game_seed(0, 5)), 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
        score, over = score + float(np.mean(reward)), terminated or truncated
    assert score == pytest.approx(expected.training_return)
    states = states_of(policy)[0]
    assert len(np.unique(states, axis=0)) == len(states) == 3


def test_a_lost_life_begins_a_memory_anew(
    lives_envs: list[LivesEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recurrent._CELLS, "gru", Counting)
    seen: list[float] = []
    act = Passes.act

    def recording(self: Passes, obs: Array, noise: Array, memories: Array, *masks: Any) -> Array:
        seen.append(float(memories[0, 0, 0]))
        return act(self, obs, noise, memories, *masks)

    monkeypatch.setattr(Passes, "act", recording)
    play(make_checkpoint(CARTPOLE, LivesEnv.env_spec, "gru"), 1, episodes=4)
    lives = [seed % 4 + 1 for seed in lives_envs[0].seeds]
    assert seen == [step for length in lives for step in range(length)]


@pytest.mark.slow
@KINDS
def test_scores_beside_the_training_are_those_of_the_verb(kind: str, tmp_path: Path) -> None:
    interval = 4 * STEPS_PER_ROLLOUT
    config = replace(
        harness.small_config("terminating", "ppo"),
        env=CARTPOLE,
        eval=sections.evaluation(interval=interval, episodes=3),
        checkpoint=sections.checkpoint(interval=interval, keep=100),
    )
    network = replace(config.network, memory=kind, memory_size=8)
    harness.run(replace(config, network=network), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/return_mean" in line]
    assert len(evaluated) >= harness.NUM_ROLLOUTS // 4 - 1
    for line in evaluated:
        steps = line["env_steps"]
        path = tmp_path / "checkpoints" / f"step_{steps:012d}.ckpt"
        episodes = play(load_checkpoint(path), episodes=3, seed=steps)
        assert line["eval/return_mean"] == np.mean([episode.raw_return for episode in episodes])
