"""Parts of Gymnasium's `Dict` and `Tuple` spaces, and values that are taken apart by them.

A part is a space of another type, at any depth; a space that is neither `Dict` nor `Tuple` is its
own only part.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from htsrl_cli.envs.batches import is_batch
from htsrl_cli.envs.gym.results import described

# Maximum number of characters of a space that a message shows.
_LONGEST = 120


@dataclass(frozen=True)
class Part:
    """A part of a space.

    Attributes:
        name: the part as a user finds it in Python, for example `observation_space["camera"]`.
        space: the part itself.
    """

    name: str
    space: spaces.Space[Any]

    def __str__(self) -> str:
        """Returns the name and the space on one line."""
        text = " ".join(str(self.space).split())
        return f"{self.name} = {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'}"


def is_whole(space: spaces.Space[Any]) -> bool:
    """Returns True if the space is its own only part."""
    return not isinstance(space, spaces.Dict | spaces.Tuple)


def parts(name: str, space: spaces.Space[Any]) -> list[Part]:
    """Returns the parts of a space in order.

    Args:
        name: name of the space, with which the names of its parts begin.
    """
    if is_whole(space):
        return [Part(name, space)]
    return [part for key, inner in _inner(space) for part in parts(_name(name, key), inner)]


def without(space: spaces.Space[Any], keys: Collection[str]) -> spaces.Space[Any]:
    """Returns a `Dict` space without the parts that have these keys; other spaces as they are."""
    if not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict([(key, part) for key, part in space.spaces.items() if key not in keys])


def leave_out(value: Any, keys: Collection[str]) -> Any:
    """Returns a value of a `Dict` space without the parts that have these keys."""
    if not isinstance(value, Mapping):
        return value
    return {key: part for key, part in value.items() if key not in keys}


def take_apart(name: str, space: spaces.Space[Any], value: Any) -> list[Any]:
    """Returns the values of the parts of a space, in order.

    Args:
        name: name of the value, for the error.

    Raises:
        ValueError: the value is of another type, or has other keys or another length.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return [value]
    inner = _inner(space)
    if isinstance(space, spaces.Dict):
        fits = isinstance(value, Mapping) and value.keys() == space.spaces.keys()
    else:
        fits = isinstance(value, tuple | list) and len(value) == len(inner)
    if not fits:
        raise ValueError(f"the {name} must be {described(space.spaces)}, but is {described(value)}")
    return [part for key, own in inner for part in take_apart(_name(name, key), own, value[key])]


def put_together(space: spaces.Space[Any], values: Iterator[Any]) -> Any:
    """Returns the value of a space whose parts have the next of `values`, in order."""
    if is_whole(space):
        return next(values)
    built = {key: put_together(inner, values) for key, inner in _inner(space)}
    return built if isinstance(space, spaces.Dict) else tuple(built.values())


def unbatch(space: spaces.Space[Any], obs: Any) -> list[Any] | None:
    """Returns the observations of a batch; None if `obs` is one observation of `space`.

    Each part of a batch of N observations has a leading axis of length N.

    Raises:
        ValueError: `obs` is neither.
    """
    values = take_apart("observation", space, obs)
    lengths = {
        len(value) if is_batch(part.name, np.shape(value), _shape(part.space)) else None
        for part, value in zip(parts("observation", space), values, strict=True)
    }
    if len(lengths) > 1:
        raise ValueError("the parts of the observation do not belong to one batch")
    if lengths == {None}:
        return None
    return [put_together(space, iter(row)) for row in zip(*values, strict=True)]


def batch(space: spaces.Space[Any], actions: Sequence[Any]) -> Any:
    """Returns a value whose parts are those of `actions`, stacked along a new first axis."""
    columns = zip(*(take_apart("action", space, action) for action in actions), strict=True)
    return put_together(space, iter([np.stack(column) for column in columns]))


def _inner(space: spaces.Space[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    """Returns the keys and the spaces directly inside a `Dict` or `Tuple`."""
    assert isinstance(space, spaces.Dict | spaces.Tuple)
    inside = space.spaces
    return list(inside.items() if isinstance(inside, Mapping) else enumerate(inside))


def _name(name: str, key: Any) -> str:
    return f"{name}[{json.dumps(key, ensure_ascii=False) if isinstance(key, str) else key}]"


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Returns the shape of a part's values, which all supported spaces declare."""
    assert space.shape is not None
    return space.shape
