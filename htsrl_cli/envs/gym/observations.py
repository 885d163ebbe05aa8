"""Conversion of observations to the form that their Gymnasium space declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from htsrl_cli.envs.base import LARGE_IMAGE, Array, is_large_image
from htsrl_cli.envs.gym import results
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.envs.gym.parts import Part, is_whole, parts, take_apart
from htsrl_cli.errors import ConfigError

# The largest value of uint8.
_BYTE = 255
# The widest range of integers that float32 holds exactly. A wider range is that of the dtype, and
# says nothing about the observations.
_EXACT = 2**24
# Maximum length of a one-hot vector, which is that of a hidden layer, too.
_LONGEST = 65_536


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


def obs_form(config: GymConfig, space: spaces.Space[Any]) -> ObsForm:
    """Returns the form of the observations of a space.

    `Box`: an array of two or three axes is an image [H, W, channels]: channels that come first are
    moved to the end, and an image without channels gets one. An image of integers from 0 to 255 at
    most is uint8, and `obs_max` is its largest possible value. All other observations are float32.
    Integers and images are divided by the bound that is farther from zero, unless a bound is
    unknown. Floats of another number of axes are a vector, which stays as it is. With
    `env.scale_observations=false`, nothing is divided here, and all arrays but those of uint8
    become vectors.

    `Discrete` and `MultiDiscrete`: one-hot vectors, float32. `MultiBinary`: as a `Box` from 0 to 1.

    `Dict` and `Tuple` with one part: the form of this part. With several parts: a float32 vector of
    all parts in order, each divided as it would be alone.

    Raises:
        ConfigError: a part has another space, is a `Box` of uint8 with more than three axes, has no
            or too many entries, or is a large image among other parts.
    """
    found = parts("observation_space", space)
    if not found:
        raise _refusal(config, "observation_space has no parts", "has some")
    forms = [_part_form(config, part) for part in found]
    if is_whole(space):
        return forms[0]
    for part, form in zip(found, forms, strict=True):
        if len(forms) > 1 and is_large_image(form.shape):
            what = (
                f"{part.name} is an image of {LARGE_IMAGE} x {LARGE_IMAGE} pixels or more, which "
                "cannot be joined with other parts"
            )
            raise _refusal(config, what, "leaves it out, or returns nothing else")
    return _joined(space, found, forms)


def _joined(space: spaces.Space[Any], found: Sequence[Part], forms: Sequence[ObsForm]) -> ObsForm:
    """Returns the form of the observations of a `Dict` or `Tuple` from the forms of its parts."""

    def convert(obs: Any) -> list[Array]:
        rows = []
        values = take_apart("observation", space, obs)
        for part, form, value in zip(found, forms, values, strict=True):
            try:
                rows.append(form.convert(value))
            except ValueError as error:
                raise ValueError(f"{part.name}: {error}") from error
        return rows

    named = zip(found, forms, strict=True)
    note = "; ".join(f"{part.name}: {form.note}" for part, form in named if form.note)
    if len(forms) == 1:
        return replace(forms[0], convert=lambda obs: convert(obs)[0], note=note)
    # Bytes are divided here, because a network would divide all parts alike.
    scales = [np.float32(1 / form.obs_max) for form in forms]

    def join(obs: Any) -> Array:
        rows = zip(convert(obs), scales, strict=True)
        return np.concatenate([np.multiply(r.ravel(), s, dtype=np.float32) for r, s in rows])

    return ObsForm((sum(math.prod(form.shape) for form in forms),), "float32", 1, join, note)


def _part_form(config: GymConfig, part: Part) -> ObsForm:
    """Returns the form of the observations of a space other than `Dict` and `Tuple`."""
    space = part.space
    if space.shape is not None and not math.prod(space.shape):
        raise _refusal(config, f"{part} has no entries", "leaves it out")
    if isinstance(space, spaces.Discrete):
        return _one_hot(config, part, np.array(space.start), np.array(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(config, part, space.start, space.nvec)
    if isinstance(space, spaces.MultiBinary):
        bits = spaces.Box(0, 1, space.shape, np.int8)
        return replace(_box_form(config, bits), note="")
    if not isinstance(space, spaces.Box):
        what = f"{part} is none of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple"
        raise _refusal(config, what, "returns one of these")
    if space.dtype == np.uint8 and len(space.shape) > 3:
        raise _refusal(
            config,
            f"{part} has the shape {space.shape}, but an array of uint8 has at most 3 axes",
            "joins axes",
        )
    return _box_form(config, space)


def _one_hot(config: GymConfig, part: Part, start: Array, sizes: Array) -> ObsForm:
    """Returns the form of integers from `start` to `start + sizes - 1`: one-hot vectors, joined."""
    lengths = [int(size) for size in sizes.ravel()]
    length = sum(lengths)
    if length > _LONGEST:
        what = f"{part} needs a one-hot vector of {length} entries, which is more than {_LONGEST}"
        raise _refusal(config, what, "returns fewer values, or a Box")
    first = np.cumsum([0, *lengths[:-1]])

    def convert(obs: Any) -> Array:
        row = np.zeros(length, np.float32)
        row[first + results.indices(obs, start, sizes).ravel()] = 1
        return row

    return ObsForm((length,), "float32", 1, convert)


def _box_form(config: GymConfig, space: spaces.Box) -> ObsForm:
    """Returns the form of the observations of a `Box`; see `obs_form`."""
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


def _refusal(config: GymConfig, what: str, remedy: str) -> ConfigError:
    """Returns the error for a space of observations that htsrl does not support.

    Args:
        what: the part, and what is wrong with it.
        remedy: what a wrapper does that makes the space supported.
    """
    return ConfigError(
        "env.id",
        config.id,
        f"its {what}: register the environment with a gymnasium.ObservationWrapper that {remedy}, "
        "and set env.id=MODULE:ID",
    )
