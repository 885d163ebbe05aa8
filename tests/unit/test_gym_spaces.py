"""Tests of the conversion of observations and actions, for random spaces and for chosen ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.envs.gym.actions import action_form
from htsrl_cli.envs.gym.observations import obs_form
from htsrl_cli.networks.mlp.network import Mlp
from htsrl_cli.networks.nature_cnn.network import NatureCnn
from tests import sections

GYM = sections.gym("Any-v0")
COIN = ActionSpec("categorical", (2,))
# Many spaces, always the same ones, and no time limit for one of them.
MANY = settings(max_examples=200, deadline=None, derandomize=True, database=None)

BOOL: Any = np.bool_
INTEGERS: list[Any] = [BOOL, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64]
FLOATS: list[Any] = [np.float32, np.float64]


@st.composite
def boxes(draw: st.DrawFn, dtypes: list[Any], max_axes: int = 3) -> spaces.Box:
    """Draws a bounded `Box`, with the same bounds in all entries or others in each entry."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=max_axes)))
    if dtype == BOOL:
        return spaces.Box(0, 1, shape, BOOL)
    least, most = 0, 200
    if not np.issubdtype(dtype, np.unsignedinteger):
        least, most = -100, 100
    low = draw(st.integers(least, most - 1))
    widths = np.arange(np.prod(shape), dtype=int).reshape(shape) if draw(st.booleans()) else 0
    high = np.minimum(draw(st.integers(low + 1, most)) + widths, most)
    ends = np.full(shape, low, dtype), np.broadcast_to(high, shape).astype(dtype)
    return spaces.Box(*ends, dtype=dtype)


def scaled(space: spaces.Box, raw: Any) -> np.ndarray[Any, Any]:
    """Returns the first inputs of a network for a raw observation, as it is multiplied there."""
    form = obs_form(GYM, space)
    obs = form.convert(raw)
    assert obs.shape == form.shape
    assert obs.dtype == form.dtype
    spec = EnvSpec(form.shape, form.dtype, COIN, obs_max=form.obs_max)
    return obs.astype(np.float64) * spec.obs_scale


@MANY
@given(boxes(INTEGERS))
def test_integers_fill_the_range_of_a_network(space: spaces.Box) -> None:
    """No entry leaves [-1, 1], and the bound that is farthest from zero arrives at its end."""
    low, high = (scaled(space, bound.astype(space.dtype)) for bound in (space.low, space.high))
    assert np.abs(low).max() <= 1
    assert np.abs(high).max() <= 1
    assert max(np.abs(low).max(), np.abs(high).max()) == pytest.approx(1)
    # An observation that differs is still another one.
    assert not np.array_equal(low, high)


@MANY
@given(boxes(FLOATS), st.integers(0, 2**16))
def test_floats_keep_their_order_and_their_zero(space: spaces.Box, seed: int) -> None:
    space.seed(seed)
    raw = space.sample()
    got = np.sort(scaled(space, raw), axis=None)
    most = np.maximum(np.abs(space.low), np.abs(space.high)).astype(np.float32)
    expected = raw if raw.ndim in (0, 1) else raw / np.where(most, most, 1)
    np.testing.assert_allclose(got, np.sort(expected, axis=None), rtol=1e-6)


@MANY
@given(boxes([np.float32, np.float64]), st.integers(0, 2**16))
def test_actions_reach_both_bounds_and_the_middle(space: spaces.Box, seed: int) -> None:
    form = action_form(GYM, space)
    size = form.spec.num_dims
    for action, expected in (
        (-1, space.low),
        (1, space.high),
        (-7, space.low),
        (7, space.high),
        (0, (space.low.astype(float) + space.high) / 2),
    ):
        taken = form.convert(np.full(size, action, np.float32))
        assert space.contains(taken)
        np.testing.assert_allclose(taken, expected, rtol=1e-6, atol=1e-6)
    noise = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    assert space.contains(form.convert(noise))


@pytest.mark.parametrize("bound", [1e-2, 1.0, 100.0, 3e37])
def test_random_actions_cover_a_space_of_any_width(bound: float) -> None:
    form = action_form(GYM, spaces.Box(-bound, bound, (1000,), np.float32))
    noise = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    taken = np.abs(form.convert(noise)) / bound
    assert taken.max() == pytest.approx(1)
    assert 0.1 < (taken < 0.5).mean() < 0.6
    assert f"mapped to Box(-{bound}" in form.note or bound == 1.0


def test_actions_without_bounds_are_left_alone() -> None:
    low, high = np.array([-np.inf, -2, -np.inf]), np.array([np.inf, np.inf, 3])
    form = action_form(GYM, spaces.Box(low, high, dtype=np.float64))
    assert form.convert(np.array([50, 50, -50], np.float32)).tolist() == [50, 50, -50]
    assert form.convert(np.array([-50, -50, 50], np.float32)).tolist() == [-50, -2, 3]
    assert form.note == ""


def test_scaling_of_actions_can_be_turned_off() -> None:
    form = action_form(sections.gym("Any-v0", scale_actions=False), spaces.Box(-2, 2, (1,)))
    assert form.convert(np.array([1.5], np.float32)).tolist() == [1.5]
    assert form.convert(np.array([7.0], np.float32)).tolist() == [2]
    assert form.spec == ActionSpec("gaussian", low=(-2.0,), high=(2.0,))


@pytest.mark.parametrize(
    ("space", "shape", "dtype", "obs_max"),
    [
        (spaces.Box(0, 1, (10, 10, 4), BOOL), (10, 10, 4), "uint8", 1),
        (spaces.Box(0, 6, (8, 8), np.int64), (8, 8, 1), "uint8", 6),
        (spaces.Box(0, 255, (210, 160, 3), np.uint8), (210, 160, 3), "uint8", 255),
        (spaces.Box(0, 0, (2, 2), np.uint8), (2, 2, 1), "uint8", 1),
        (spaces.Box(0, 255, (3, 64, 64), np.int32), (64, 64, 3), "uint8", 255),
        (spaces.Box(0, 1, (64, 64, 3), np.float32), (64, 64, 3), "float32", 1),
        (spaces.Box(-1, 1, (8, 8), np.int8), (8, 8, 1), "float32", 1),
        (spaces.Box(0, 1, (20,), np.uint8), (20,), "float32", 1),
        (spaces.Box(-(2**31), 2**31 - 1, (4,), np.int32), (4,), "float32", 1),
        (spaces.Box(-np.inf, np.inf, (2, 3, 4, 5), np.float32), (120,), "float32", 1),
    ],
    ids=str,
)
def test_forms(space: spaces.Box, shape: tuple[int, ...], dtype: str, obs_max: int) -> None:
    form = obs_form(GYM, space)
    assert (form.shape, form.dtype, form.obs_max) == (shape, dtype, obs_max)


def test_bounds_of_the_dtype_say_nothing() -> None:
    space = spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32)
    assert scaled(space, np.array([3, -4], np.int32)).tolist() == [3, -4]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_values_above_the_bound_are_refused(dtype: Any) -> None:
    form = obs_form(GYM, spaces.Box(0, 6, (8, 8), dtype))
    with pytest.raises(ValueError, match="from 0 to 6, as in the observation space"):
        form.convert(np.full((8, 8), 7, dtype))


def test_scaling_of_observations_can_be_turned_off() -> None:
    config = sections.gym("Any-v0", scale_observations=False)
    flags = obs_form(config, spaces.Box(0, 1, (20,), np.uint8))
    assert (flags.shape, flags.dtype, flags.obs_max) == ((20,), "uint8", 255)
    image = obs_form(config, spaces.Box(0, 1, (64, 64, 3), np.float32))
    assert (image.shape, image.dtype) == ((64 * 64 * 3,), "float32")


@pytest.mark.parametrize("network", ["cnn", "mlp"])
def test_images_of_floats_and_of_bytes_give_the_same_features(network: str) -> None:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    features = []
    for space, raw in (
        (spaces.Box(0, 255, (40, 40, 3), np.uint8), pixels.astype(np.uint8)),
        (spaces.Box(0, 255, (40, 40, 3), np.int32), pixels.astype(np.int32)),
        (spaces.Box(0, 255, (40, 40, 3), np.float32), pixels.astype(np.float32)),
        (spaces.Box(0, 1, (3, 40, 40), np.float64), np.moveaxis(pixels, -1, 0) / 255),
    ):
        form = obs_form(GYM, space)
        spec = EnvSpec(form.shape, form.dtype, COIN, obs_max=form.obs_max)
        torch.manual_seed(0)
        trunk = NatureCnn(spec, "product") if network == "cnn" else Mlp(spec, (16,), "tanh")
        with torch.no_grad():
            features.append(trunk(torch.from_numpy(form.convert(raw).copy())[None]))
    for other in features[1:]:
        torch.testing.assert_close(other, features[0])
