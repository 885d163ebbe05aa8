"""Action masks: distributions, environments, actors, the learner, evaluation and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical

from htsrl_cli.api import game_seed
from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.envs.gym.masks import MaskForm
from htsrl_cli.envs.probe import random_action, restores_exactly
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import ConfigError, EnvError, UsageError
from htsrl_cli.networks.distributions import log_prob_entropy, mask_logits, most_likely, sample
from htsrl_cli.storage.slot import slot_fields
from tests import sections
from tests.unit.masked_env import LENGTH
from tests.unit.test_evaluation import make_checkpoint, play
from tests.unit.test_trained_policy import stored

SIZES = [4, 2, 3]
MULTI = ActionSpec("categorical", sizes=tuple(SIZES))
# Dimensions with one, all, and some of their categories.
MASK = torch.tensor([0, 0, 1, 0, 1, 1, 0, 1, 1]).bool()


def masked(name: str = "Masked", **kwargs: Any) -> GymConfig:
    env_id = f"tests.unit.masked_env:{name}-v0"
    return sections.gym(env_id, kwargs=kwargs, mask_actions=True)


def random_params(num_rows: int) -> torch.Tensor:
    return 5 * torch.randn(num_rows, 9, generator=torch.Generator().manual_seed(0))


# Distributions


def test_a_masked_action_is_not_drawn_in_a_million_draws() -> None:
    num_rows = 1_000_000
    rng = np.random.default_rng(0)
    masks = rng.random((num_rows, 9)) < 0.3
    first = np.cumsum([0, 4, 2])
    for start, size in zip(first, MULTI.sizes, strict=True):
        masks[np.arange(num_rows), start + rng.integers(0, size, num_rows)] = True
    noise = rng.random((num_rows, 3), dtype=np.float32)
    # The ends of the interval [0, 1) are the draws nearest to masked neighbors.
    noise[::10], noise[1::10] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    logits = mask_logits(random_params(num_rows), torch.from_numpy(masks))
    for choose in (sample, most_likely):
        chosen, log_probs = choose(MULTI, logits, torch.from_numpy(noise))
        assert np.take_along_axis(masks, chosen.numpy() + first, axis=1).all()
        assert torch.isfinite(log_probs).all()


def test_probabilities_are_those_of_the_allowed_actions_alone() -> None:
    params, rows = random_params(50), MASK.expand(50, 9)
    logits = mask_logits(params, rows)
    noise = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    chosen, sampled = sample(MULTI, logits, noise)
    log_probs, entropies = log_prob_entropy(MULTI, logits, chosen)
    expected, expected_entropies = torch.zeros(50), torch.zeros(50)
    kept = [part.nonzero().flatten() for part in torch.split(MASK, SIZES)]
    for d, part in enumerate(torch.split(params, SIZES, dim=1)):
        alone = Categorical(logits=part[:, kept[d]])
        place = torch.searchsorted(kept[d], chosen[:, d].contiguous())
        expected += alone.log_prob(place)  # type: ignore[no-untyped-call]
        expected_entropies += alone.entropy()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(sampled, expected)
    torch.testing.assert_close(entropies, expected_entropies)


def test_masked_actions_have_no_probability_and_no_gradient() -> None:
    params = random_params(50).requires_grad_()
    logits = mask_logits(params, MASK.expand(50, 9))
    dimensions = zip(torch.split(logits, SIZES, dim=1), torch.split(MASK, SIZES), strict=True)
    for part, mask in dimensions:
        assert (part.softmax(dim=1)[:, ~mask] == 0).all()
    chosen, _ = sample(MULTI, logits, torch.full((50, 3), 0.5))
    log_probs, entropies = log_prob_entropy(MULTI, logits, chosen)
    (gradient,) = torch.autograd.grad((log_probs + entropies).sum(), params)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, ~MASK] == 0).all()
    # The first dimension has no choice.
    assert (gradient[:, MASK][:, 0] == 0).all()
    assert (gradient[:, MASK][:, 1:] != 0).any(dim=0).all()


def test_without_masks_logits_are_the_same_object() -> None:
    params = random_params(2)
    assert mask_logits(params, None) is params


# Slots and environments


def test_only_environments_with_masks_have_a_field() -> None:
    names = [f.name for f in slot_fields(EnvSpec((3,), "float32", MULTI))]
    assert "masks" not in names
    (field,) = (
        f for f in slot_fields(EnvSpec((3,), "float32", MULTI, has_masks=True)) if f.name == "masks"
    )
    assert field.layout(16, 8) == ((17, 8, 9), "bool")


@pytest.mark.parametrize("in_obs", [False, True])
@pytest.mark.parametrize("sizes", [(5,), (2, 4)])
@pytest.mark.parametrize("name", ["Masked", "MaskedSaving"])
def test_the_mask_of_every_observation_is_taken(
    name: str, sizes: tuple[int, ...], in_obs: bool
) -> None:
    config = masked(name, in_obs=in_obs, sizes=sizes)
    env, restored = GymEnv(config), GymEnv(config)
    assert env.env_spec.has_masks
    assert env.env_spec.obs_shape == (3,)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=1)
    for _ in range(5 * LENGTH):
        raw: Any = env.wrapped.unwrapped
        assert env.action_mask.dtype == np.bool_
        assert np.array_equal(env.action_mask, raw.mask)
        assert np.array_equal(restored.set_state(env.get_state()), obs)
        assert np.array_equal(restored.action_mask, env.action_mask)
        obs, _, terminated, truncated, _ = env.step(random_action(env, rng))
        if terminated or truncated:
            obs, _ = env.reset(seed=int(rng.integers(100)))
    assert restores_exactly(config)


def test_off_a_mask_is_no_mask() -> None:
    off = sections.gym("tests.unit.masked_env:Masked-v0", kwargs={"in_obs": True})
    env = GymEnv(off)
    assert not env.env_spec.has_masks
    assert env.env_spec.obs_shape == (8,)
    assert any("env.mask_actions=true" in note for note in env.notes)
    assert not hasattr(env, "action_mask")


@pytest.mark.parametrize("in_obs", [False, True])
def test_a_mask_without_an_allowed_action_names_environment_and_step(in_obs: bool) -> None:
    env = make_env(masked(in_obs=in_obs, sizes=(2, 3), blocks_at=4), 7)
    env.reset(seed=11)
    rng = np.random.default_rng(0)
    for _ in range(3):
        env.step(random_action(env, rng))
    words = (
        r"environment 7 .*: env step 3 after reset\(seed=11\) failed\n.*no action in dimension 1"
    )
    with pytest.raises(EnvError, match=words):
        env.step(random_action(env, rng))
    with pytest.raises(EnvError, match=r"environment 0 .*reset\(seed=2\) failed\n.*no action$"):
        make_env(masked(in_obs=in_obs, blocks_at=0), 0).reset(seed=2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "there is no action mask"),
        ([1, 0], r"has the shape \(2,\), but must have .*\(5,\)"),
        ([[1, 0, 1, 1, 1]], r"has the shape \(1, 5\)"),
        ([1, 0, 2, 1, 1], "must consist of 0 and 1"),
        ([-np.inf, 0, 0, 1, 1], "must consist of 0 and 1"),
        ([0, 0, 1, 1, 1], "allows no action in dimension 0"),
    ],
)
def test_masks_that_do_not_fit_are_refused(given: Any, words: str) -> None:
    actions = ActionSpec("categorical", sizes=(2, 3))
    form = MaskForm(masked(), spaces.Box(0, 1, (3,)), actions)
    with pytest.raises(ValueError, match=words):
        form.convert(np.zeros(3), given)


def test_a_mask_may_be_a_tuple_as_for_sampling() -> None:
    actions = ActionSpec("categorical", sizes=(2, 3))
    parts = (np.array([0, 1], np.int8), np.array([1, 0, 1], np.int8))
    form = MaskForm(masked(), spaces.Box(0, 1, (3,)), actions)
    expected = [False, True, True, False, True]
    assert form.convert(None, parts).tolist() == expected
    assert form.convert(None, [0.0, 1.0, 1.0, 0.0, 1.0]).tolist() == expected


def test_continuous_actions_are_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^env\.mask_actions=true: .*Pendulum-v1.*leave"
    ) as raised:
        make_env(sections.gym("Pendulum-v1", mask_actions=True), 0)
    assert "\n" not in str(raised.value)


# Evaluation and policies. The environment raises an error for a masked action.


@pytest.mark.parametrize("in_obs", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_policy_takes_allowed_actions_as_in_an_evaluation(
    greedy: bool, in_obs: bool, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(masked(in_obs=in_obs, sizes=(4, 3)), inference_batch=8)
    expected = play(checkpoint, episodes=12, seed=5, greedy=greedy)
    assert play(checkpoint, side_by_side=1, episodes=12, seed=5, greedy=greedy) == expected
    policy = stored(checkpoint, tmp_path, seed=5, trusted=True)
    env = policy.make_env()
    obs, info = env.reset(seed=game_seed(0, 5))
    score, over = 0.0, False
    while not over:
        action = policy.act(obs, greedy, info.get("action_mask"))
        obs, reward, terminated, truncated, info = env.step(action)
        score, over = score + reward, terminated or truncated
    assert score == expected[0].raw_return


@pytest.mark.parametrize("in_obs", [False, True])
def test_batches_have_a_mask_for_each_observation(in_obs: bool, tmp_path: Path) -> None:
    policy = stored(make_checkpoint(masked(in_obs=in_obs)), tmp_path, trusted=True)
    only: Array = np.eye(5, dtype=np.int8)
    obs = np.zeros((5, 3), np.float32)
    if in_obs:
        batch = {"action_mask": only, "observation": obs}
        assert policy.act(batch).tolist() == [1, 2, 3, 4, 5]
    else:
        assert policy.act(obs, action_mask=only).tolist() == [1, 2, 3, 4, 5]
        with pytest.raises(UsageError, match=r"^act: there are 5 observations, but 2 action masks"):
            policy.act(obs, action_mask=only[:2])
        with pytest.raises(UsageError, match=r"^act: there is no action mask"):
            policy.act(obs)


def test_a_policy_without_masks_refuses_one(tmp_path: Path) -> None:
    policy = stored(make_checkpoint(sections.gym("CartPole-v1")), tmp_path)
    with pytest.raises(UsageError, match=r"^act: .*trained without masks"):
        policy.act(np.zeros(4), action_mask=[1, 1])
