"""The state that a part of a run saves: arrays, and plain values.

Whatever a checkpoint holds has `state()` and `load_state()`. The checkpoint keeps the parts apart
by name: array `name` of a part is `<part>/<name>` in the file, and its values are one entry of the
document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class State(NamedTuple):
    """The saved state of one part of a run.

    Attributes:
        arrays: by name; any shape and numeric dtype.
        values: JSON-able. Floats survive exactly; tuples come back as lists.
    """

    arrays: dict[str, Array]
    values: dict[str, Any]


class Stateful(Protocol):
    """A part of a run that can go on exactly where it was."""

    def state(self) -> State:
        """Returns what `load_state` needs; arrays may share memory with the part."""

    def load_state(self, state: State) -> None:
        """Goes on from a state."""


def join(parts: Mapping[str, State]) -> State:
    """Returns the states of all parts as one."""
    arrays = {f"{part}/{n}": a for part, state in parts.items() for n, a in state.arrays.items()}
    return State(arrays, {part: state.values for part, state in parts.items()})


def split(whole: State, part: str) -> State:
    """Returns the state of one part from that of all; empty where it has none."""
    prefix = f"{part}/"
    arrays = {n.removeprefix(prefix): a for n, a in whole.arrays.items() if n.startswith(prefix)}
    return State(arrays, whole.values.get(part, {}))


def digest(arrays: Mapping[str, Array]) -> str:
    """Returns the SHA-256 of the arrays' bytes in order of name, as hexadecimal digits."""
    sha256 = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        sha256.update(array.tobytes())
    return sha256.hexdigest()
