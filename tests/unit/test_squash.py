"""Gaussian actions that are squashed by tanh: bounds, log-probabilities, entropies, evaluation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss

from htsrl_cli.api import game_seed
from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.upgrade import upgrade_config
from htsrl_cli.config.identity import config_sha256
from htsrl_cli.envs.base import ActionSpec
from htsrl_cli.envs.squash import squasher
from htsrl_cli.errors import ConfigError
from htsrl_cli.networks.distributions import (
    log_prob_entropy,
    most_likely,
    policy_actions,
    sample,
)
from tests import sections
from tests.conftest import Htsrl
from tests.unit.test_evaluation import make_checkpoint, play
from tests.unit.test_trained_policy import by_hand, stored

ENV = ActionSpec("gaussian", low=(-1.0, -0.25), high=(1.0, 3.75))
TANH = sections.ppo(squash="tanh")
ACTIONS = policy_actions(ENV, TANH)
HALF = np.array([1.0, 2.0])
MIDDLE = np.array([0.0, 1.75])
SQUASH: Any = squasher(ENV, TANH)


def params_of(mean: list[float], log_std: list[float], num_rows: int = 1) -> torch.Tensor:
    return torch.tensor([[*mean, *log_std]]).expand(num_rows, -1)


def reference(mean: Any, log_std: Any, u: Any) -> Any:
    """Returns log-probabilities in float64, by the change of variables as in a textbook."""
    mean, log_std, u = (np.asarray(x, np.float64) for x in (mean, log_std, u))
    z = (u - mean) / np.exp(log_std)
    gaussian = -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)
    # 1 / cosh^2 is the slope of tanh, without a difference of nearly equal numbers.
    slope = HALF / np.cosh(u) ** 2
    return (gaussian - np.log(slope)).sum(axis=-1)


def test_actions_are_within_their_bounds() -> None:
    u = np.array([[-1e30, 1e30], [-20.0, 20.0], [0.0, 0.0], [0.5, -0.5]], np.float32)
    action = SQUASH(u)
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, MIDDLE + HALF * np.tanh(u), rtol=1e-6)
    assert (action >= ENV.low).all()
    assert (action <= ENV.high).all()
    # A row does not depend on the other rows.
    assert all(np.array_equal(SQUASH(row), whole) for row, whole in zip(u, action, strict=True))


def test_log_probabilities_are_those_of_float64() -> None:
    rng = np.random.default_rng(0)
    mean, log_std = rng.normal(size=(500, 2)), rng.uniform(-2, 1, (500, 2))
    u = (mean + np.exp(log_std) * rng.normal(size=(500, 2))).astype(np.float32)
    params = np.concatenate([mean, log_std], axis=1).astype(np.float32)
    expected = reference(params[:, :2], params[:, 2:], u)
    log_probs, _ = log_prob_entropy(ACTIONS, torch.from_numpy(params), torch.from_numpy(u))
    np.testing.assert_allclose(log_probs.numpy(), expected, rtol=2e-6, atol=2e-5)


def test_far_out_actions_have_finite_log_probabilities_and_gradients() -> None:
    for number in (-300.0, -30.0, -8.0, 8.0, 30.0, 300.0):
        params = params_of([number, number], [0.0, 0.0]).clone().requires_grad_()
        u = torch.full((1, 2), number + 0.5)
        log_probs, entropies = log_prob_entropy(ACTIONS, params, u, torch.ones(1, 2))
        expected = reference(number, 0.0, u.numpy())
        np.testing.assert_allclose(log_probs.detach().numpy(), expected, rtol=2e-6)
        (gradient,) = torch.autograd.grad((log_probs + entropies).sum(), params)
        assert torch.isfinite(gradient).all()


def test_densities_of_squashed_actions_sum_to_one() -> None:
    # Over the interval of the actions, in each dimension alone.
    edges = np.linspace(-1, 1, 20_002)
    tanh = (edges[1:] + edges[:-1]) / 2
    u = torch.from_numpy(np.arctanh(tanh).astype(np.float32))[:, None]
    for d in range(2):
        one = replace(ACTIONS, low=ENV.low[d : d + 1], high=ENV.high[d : d + 1])
        params = torch.tensor([[0.3, -0.5]]).expand(len(u), -1)
        density = log_prob_entropy(one, params, u)[0].double().exp()
        assert float(density.sum()) * HALF[d] * (edges[1] - edges[0]) == pytest.approx(1, abs=1e-4)


def test_the_entropy_is_right_on_average_and_has_the_right_gradient() -> None:
    mean, log_std = np.array([0.4, -1.0]), np.array([-0.5, 0.2])
    points, weights = hermegauss(100)

    def entropy(mean: Any, log_std: Any) -> float:
        """Returns the mean of -log p by quadrature, of independent dimensions."""
        total = 0.0
        for d in range(2):
            u = mean[d] + np.exp(log_std[d]) * points
            slope = np.log(HALF[d] / np.cosh(u) ** 2)
            gaussian = log_std[d] + 0.5 * math.log(2 * math.pi * math.e)
            total += gaussian + (weights * slope).sum() / math.sqrt(2 * math.pi)
        return total

    num_rows = 200_000
    leaf = torch.tensor([*mean, *log_std], dtype=torch.float32).requires_grad_()
    noise = torch.randn(num_rows, 2, generator=torch.Generator().manual_seed(0))
    params = leaf.expand(num_rows, -1)
    _, entropies = log_prob_entropy(ACTIONS, params, torch.zeros(num_rows, 2), noise)
    assert entropies.mean().item() == pytest.approx(entropy(mean, log_std), abs=0.01)
    (gradient,) = torch.autograd.grad(entropies.mean(), leaf)
    step = 1e-4 * np.eye(2)
    expected = [entropy(mean + s, log_std) - entropy(mean - s, log_std) for s in step]
    expected += [entropy(mean, log_std + s) - entropy(mean, log_std - s) for s in step]
    np.testing.assert_allclose(gradient.numpy(), np.array(expected) / 2e-4, atol=0.01)


def test_sampled_actions_are_stored_before_tanh() -> None:
    params = params_of([0.5, -1.0], [0.0, math.log(2)], 3)
    noise = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-0.5, 2.0]])
    chosen, log_probs = sample(ACTIONS, params, noise)
    torch.testing.assert_close(chosen, torch.tensor([[0.5, -1.0], [1.5, -3.0], [0.0, 3.0]]))
    assert torch.equal(log_probs, log_prob_entropy(ACTIONS, params, chosen)[0])
    greedy, _ = most_likely(ACTIONS, params, noise)
    assert torch.equal(greedy, params[:, :2])


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (ActionSpec("categorical", sizes=(2,)), "discrete: leave this key out"),
        (ActionSpec("gaussian", low=(-1.0, 0.0), high=(1.0, math.inf)), "number 1 .* 0.0 and inf"),
    ],
)
def test_actions_that_cannot_be_squashed_are_refused(actions: ActionSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^algo\.squash=tanh: .*{words}"):
        policy_actions(actions, TANH)
    assert policy_actions(actions, sections.ppo()) is actions


def test_the_command_line_refuses_in_one_line(htsrl: Htsrl, tmp_path: Path) -> None:
    done = htsrl("train", "env=gym", "env.id=CartPole-v1", "algo.squash=tanh", "hydra.run.dir=x")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "algo.squash=tanh: the environment's actions are discrete" in line
    assert not (tmp_path / "x").exists()


def test_clip_keeps_the_hash_of_a_configuration() -> None:
    config = sections.train()
    assert config.algo.squash == "clip"
    tanh = replace(config, algo=replace(config.algo, squash="tanh"))
    assert config_sha256(tanh) != config_sha256(config)
    assert upgrade_config({"algo": {"name": "ppo"}})["algo"]["squash"] == "clip"


def squashed(env_id: str) -> Checkpoint:
    checkpoint = make_checkpoint(sections.gym(env_id, max_episode_steps=30))
    checkpoint.meta["config"]["algo"]["squash"] = "tanh"
    return checkpoint


@pytest.mark.parametrize("greedy", [False, True])
def test_a_game_by_hand_has_the_score_of_an_evaluation(greedy: bool, tmp_path: Path) -> None:
    checkpoint = squashed("Pendulum-v1")
    (expected, *_) = play(checkpoint, episodes=2, seed=5, greedy=greedy)
    policy = stored(checkpoint, tmp_path, seed=5)
    env = gymnasium.make("Pendulum-v1", max_episode_steps=30)
    assert by_hand(policy, env, game_seed(0, 5), greedy) == expected[::2]
    clipped = make_checkpoint(sections.gym("Pendulum-v1", max_episode_steps=30))
    assert play(clipped, episodes=1, seed=5, greedy=greedy)[0] != expected


def test_a_policy_squashes_its_actions_into_the_bounds(tmp_path: Path) -> None:
    policy = stored(squashed("Pendulum-v1"), tmp_path)
    obs = np.random.default_rng(0).normal(size=(500, 3))
    actions = policy.act(obs)
    assert np.abs(actions).max() < 2.0
    assert np.abs(actions).max() > 1.9
