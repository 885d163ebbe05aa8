"""The state of a part of a run: arrays and plain values.

Each part of a run that checkpoints save has `state()` and `load_state()`. In the file, an array
`name` of a part is called `<part>/<name>`, and the part's values are one entry of the document.
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
        arrays: arrays by name, of any shape and any numeric or boolean dtype.
        values: JSON-serializable values. Floats are kept exactly; tuples become lists.
    """

    arrays: dict[str, Array]
    values: dict[str, Any]


class Stateful(Protocol):
    """A part of a run whose state can be saved and restored exactly."""

    def state(self) -> State:
        """Returns the state; its arrays may share memory with the part."""

    def load_state(self, state: State) -> None:
        """Restores a state."""


def join(parts: Mapping[str, State]) -> State:
    """Joins the states of all parts into one."""
    arrays = {f"{part}/{n}": a for part, state in parts.items() for n, a in state.arrays.items()}
    return State(arrays, {part: state.values for part, state in parts.items()})


def split(whole: State, part: str) -> State:
    """Returns the state of one part out of a joined one; empty if the part has none."""
    prefix = f"{part}/"
    arrays = {n.removeprefix(prefix): a for n, a in whole.arrays.items() if n.startswith(prefix)}
    return State(arrays, whole.values.get(part, {}))


def digest(arrays: Mapping[str, Array]) -> str:
    """Returns the SHA-256 of the arrays' bytes, in order of their names, as hexadecimal digits."""
    sha256 = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        sha256.update(array.tobytes())
    return sha256.hexdigest()
