"""Conversion of observations from, and of actions to, the form that a Gymnasium space declares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from htsrl_cli.envs.base import ActionSpec, Array
from htsrl_cli.envs.gym import results
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.errors import ConfigError

# The largest value of uint8.
_BYTE = 255
# The widest range of integers that float32 holds exactly. A wider range is that of the dtype, and
# says nothing about the observations.
_EXACT = 2**24


@dataclass(frozen=True)
class ObsForm:
    """The form of observations in a slot.

    Attributes:
        shape: shape of a converted observation.
        dtype: NumPy's name of its dtype.
        obs_max: see `EnvSpec`.
        convert: function that converts an observation of the environment; it raises `ValueError`
            for an observation that does not fit the space.
        note: what happens to the numbers, for the log; empty if nothing does.
    """

    shape: tuple[int, ...]
    dtype: str
    obs_max: int
    convert: Callable[[Any], Array]
    note: str = ""


@dataclass(frozen=True)
class ActionForm:
    """The form of actions in a slot.

    Attributes:
        spec: the form of an action.
        convert: function that converts an action vector into an action of the environment.
        note: what happens to the numbers, for the log; empty if nothing does.
    """

    spec: ActionSpec
    convert: Callable[[Array], Any]
    note: str = ""


def observations(config: GymConfig, space: spaces.Space[Any]) -> ObsForm:
    """Returns the form of the observations of a `Box`.

    An array of two or three axes is an image [H, W, channels]: channels that come first are moved
    to the end, and an image without channels gets one. An image of integers from 0 to 255 at most
    is uint8, and `obs_max` is its largest possible value. All other observations are float32.
    Integers and images are divided by the bound that is farther from zero, unless a bound is
    unknown. Floats of another number of axes are a vector, which stays as it is.

    With `env.scale_observations=false`, nothing is divided here, and all arrays but those of uint8
    become vectors.

    Raises:
        ConfigError: the space is not a `Box`, or is one of uint8 with more than three axes.
    """
    if not isinstance(space, spaces.Box) or (space.dtype == np.uint8 and len(space.shape) > 3):
        raise ConfigError("env.id", config.id, _refusal(config.id, space))
    shape, is_image = space.shape, len(space.shape) in (2, 3)
    is_integer = not np.issubdtype(space.dtype, np.floating)
    is_byte = is_integer and space.low.min() >= 0 and space.high.max() <= _BYTE
    scaled = config.scale_observations
    if not scaled:
        is_byte = space.dtype == np.uint8
        is_image &= is_byte
    form, arrange = _arrangement(shape) if is_image else ((math.prod(shape),), np.ravel)
    if is_byte and (is_image or not scaled):
        most = int(space.high.max()) or 1 if scaled else _BYTE
        return ObsForm(
            form,
            "uint8",
            most,
            lambda obs: arrange(results.bytes_of(obs, shape, most)),
            f"observations are divided by {most}" * (most > 1),
        )
    scale = _scale(space) if scaled and (is_integer or is_image) else None
    if scale is None:
        return ObsForm(form, "float32", 1, lambda obs: arrange(results.floats(obs, shape)))
    return ObsForm(
        form,
        "float32",
        1,
        lambda obs: arrange(results.floats(obs, shape) * scale),
        f"observations are divided by the bounds of {space}",
    )


def _arrangement(shape: tuple[int, ...]) -> tuple[tuple[int, ...], Callable[[Array], Array]]:
    """Returns the shape [H, W, channels] of an image, and the function that gives it this shape."""
    if len(shape) == 3 and shape[0] < min(shape[1:]):
        channels, height, width = shape
        return (height, width, channels), lambda image: np.moveaxis(image, 0, -1)
    if len(shape) == 2:
        return (*shape, 1), lambda image: image[..., None]
    return shape, lambda image: image


def _scale(space: spaces.Box) -> Array | None:
    """Returns the factor of each entry that brings it into [-1, 1]; None if a bound is unknown."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    most = np.maximum(np.abs(low), np.abs(high))
    if (most >= _EXACT).any():
        return None
    return (1 / np.where(most > 0, most, 1)).astype(np.float32)


def _refusal(env_id: str, space: spaces.Space[Any]) -> str:
    """Returns the remedy for a space of observations that htsrl does not support."""
    if isinstance(space, spaces.Box):
        return (
            f"its observation space has the shape {space.shape}, but an array of uint8 has at most "
            "3 axes: join axes with gymnasium.wrappers.ReshapeObservation where you register it"
        )
    if not space.is_np_flattenable:
        return (
            f"its observation space {space} has no fixed size: register a "
            "gymnasium.ObservationWrapper that returns a Box, and set env.id=MODULE:ID"
        )
    return (
        f"its observation space {space} must be a Box: register it with a wrapper, "
        "gymnasium.register('Flat-v0', lambda **kwargs: FlattenObservation(gymnasium.make("
        f"'{env_id}', **kwargs))), and set env.id=MODULE:Flat-v0"
    )


def actions(config: GymConfig, space: spaces.Space[Any]) -> ActionForm:
    """Returns the form of htsrl's actions for a space of Gymnasium.

    With `env.scale_actions`, -1 and 1 stand for the bounds in each dimension of a `Box` that has
    two finite bounds. All actions are clipped to the bounds.

    Raises:
        ConfigError: the space is neither `Discrete` nor `MultiDiscrete` nor a `Box` of floats.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        spec = ActionSpec("categorical", sizes=(int(space.n),))
        return ActionForm(spec, lambda action: int(action[0]) + start)
    if isinstance(space, spaces.MultiDiscrete):
        multi = space
        spec = ActionSpec("categorical", sizes=tuple(int(n) for n in multi.nvec.ravel()))
        return ActionForm(
            spec,
            lambda action: (action.reshape(multi.shape) + multi.start).astype(multi.dtype),
        )
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _gaussian(space, config.scale_actions)
    remedy = f"its action space {space} must be Discrete, MultiDiscrete or a Box of floats"
    raise ConfigError("env.id", config.id, remedy)


def _gaussian(box: spaces.Box, scaled: bool) -> ActionForm:
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & scaled
    # Where an action is not mapped, the middle is 0 and half the width is 1.
    ends = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    middle, half = ends[0] / 2 + ends[1] / 2, ends[1] / 2 - ends[0] / 2
    least, most = np.where(bounded, -1.0, low), np.where(bounded, 1.0, high)
    spec = ActionSpec(
        "gaussian", low=tuple(least.ravel().tolist()), high=tuple(most.ravel().tolist())
    )

    def to_action(action: Array) -> Array:
        clipped = np.clip(action.reshape(box.shape), least, most)
        mapped = np.asarray(middle + half * clipped, box.dtype)
        # Rounding may have moved a bound.
        return np.asarray(mapped.clip(box.low, box.high))

    is_mapped = bool((least != low).any() or (most != high).any())
    return ActionForm(spec, to_action, f"actions from -1 to 1 are mapped to {box}" * is_mapped)
