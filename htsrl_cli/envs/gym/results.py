"""Checks of what a Gymnasium environment returns: an invalid result is an error where it enters.

The functions raise `ValueError` with a message that says what was returned and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from htsrl_cli.envs.base import Array

_BYTE = 255
_RESET = "reset() must return (observation, info)"
_STEP = "step() must return (observation, reward, terminated, truncated, info)"


def of_reset(result: Any) -> tuple[Any, Any]:
    """Returns the observation and the info that `reset` returned."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"{_RESET}, but returned {described(result)}")
    return result


def of_step(result: Any) -> tuple[Any, float, bool, bool, Any]:
    """Returns the observation, reward, `terminated`, `truncated` and info that `step` returned."""
    if not isinstance(result, tuple) or len(result) != 5:
        raise ValueError(f"{_STEP}, but returned {described(result)}")
    obs, reward, terminated, truncated, info = result
    try:
        number = float(reward)
    except (TypeError, ValueError):
        raise ValueError(f"the reward must be a number, but is {reward!r:.80}") from None
    if not math.isfinite(number):
        raise ValueError(f"the reward must be finite, but is {number}")
    return obs, number, bool(terminated), bool(truncated), info


def floats(obs: Any, shape: tuple[int, ...]) -> Array:
    """Returns an observation as float32 of the shape `shape`, checked."""
    if isinstance(obs, np.ndarray) and obs.dtype == np.float32:
        array: Array = obs
    else:
        with np.errstate(over="ignore"):
            array = np.asarray(obs, np.float32)
    _check_shape(array, shape)
    if not np.isfinite(array).all():
        wrong = np.asarray(obs)[~np.isfinite(array)][0]
        raise ValueError(f"the observation must be finite in float32, but contains {wrong}")
    return array


def bytes_of(obs: Any, shape: tuple[int, ...], most: int) -> Array:
    """Returns an observation as uint8 of the shape `shape`; checks that no value exceeds `most`."""
    array = np.asarray(obs)
    _check_shape(array, shape)
    if array.dtype == np.bool_ or (array.dtype == np.uint8 and most == _BYTE):
        return array.view(np.uint8)
    if np.issubdtype(array.dtype, np.integer) and array.min() >= 0 and array.max() <= most:
        return array.astype(np.uint8)
    raise ValueError(
        f"the observation must be integers from 0 to {most}, as in the observation space, but is "
        f"{array.dtype} from {array.min()} to {array.max()}"
    )


def indices(obs: Any, start: Array, sizes: Array) -> Array:
    """Returns integers from `start` to `start + sizes - 1` as int64 from 0 on, checked.

    Args:
        start, sizes: the first value of each entry, and the number of its values; their shape is
            that of the observation.
    """
    array = np.asarray(obs)
    _check_shape(array, start.shape)
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer):
        found: Array = array.astype(np.int64) - start
        if (found >= 0).all() and (found < sizes).all():
            return found
    raise ValueError(
        f"the observation must be integers from {start.tolist()!s:.80} to "
        f"{(start + sizes - 1).tolist()!s:.80}, as in the observation space, but is {obs!r:.80}"
    )


def _check_shape(array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(
            f"the observation has the shape {array.shape}, but the observation space has {shape}"
        )


def described(value: Any) -> str:
    """Returns the type of a value, and the length of a tuple or list or the keys of a dict."""
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
