"""The state of a part of a run: arrays and plain values.

A part whose state is saved has the methods `state()` and `load_state()`. In a checkpoint file, the
array `name` of a part is called `<part>/<name>`. The part's values are the entry `parts[<part>]` of
the JSON document (`Checkpoint.meta`). These are the arrays of a run's checkpoint:

    learner/params/<name>                  parameters and buffers of θ[j], the current version
    learner/previous/<name>                parameters and buffers of θ[j-1], the previous version
    learner/optimizer/<quantity>/<name>    the optimizer's state for each parameter of θ[j]
    learner/discounted_returns             float64 [B]; only with `env.normalize_reward`
    envs/<i>                               the state of environment i, as uint8
    envs/obs                               the environments' current observations, [B, *obs_shape]
    envs/memories                          memory states before these, [B, S]; see `network.memory`
    slot/terminated                        bool [T, B]; True where an env step terminated an episode
    slot/truncated                         bool [T, B]; True where an env step truncated an episode
    slot/<name>                            the other arrays of `Slot`

In shapes, T is the number of env steps of each environment in a rollout, B is the number of columns
and S is the numbers of a memory state. The arrays of the slot hold the rollout that has been
collected but not yet learned from. They are missing if there is no such rollout. The parts `log`
and `rollouts` have no arrays.
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
        arrays: arrays by name; see `Checkpoint.arrays` for shapes and dtypes.
        values: JSON-compatible values by name. Floats are restored exactly; tuples become lists.
    """

    arrays: dict[str, Array]
    values: dict[str, Any]


class Stateful(Protocol):
    """A part of a run whose state can be saved and restored exactly."""

    def state(self) -> State:
        """Returns the state; its arrays may share memory with this object."""

    def load_state(self, state: State) -> None:
        """Restores a state that `state()` returned."""


def join(parts: Mapping[str, State]) -> State:
    """Joins the states of all parts into one state."""
    arrays = {f"{part}/{n}": a for part, state in parts.items() for n, a in state.arrays.items()}
    return State(arrays, {part: state.values for part, state in parts.items()})


def split(whole: State, part: str) -> State:
    """Returns the state of one part of a joined state, or an empty state if the part is missing."""
    prefix = f"{part}/"
    arrays = {n.removeprefix(prefix): a for n, a in whole.arrays.items() if n.startswith(prefix)}
    return State(arrays, whole.values.get(part, {}))


def digest(arrays: Mapping[str, Array]) -> str:
    """Returns one SHA-256 of all arrays, in the order of their names, as hexadecimal digits."""
    sha256 = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        sha256.update(array.tobytes())
    return sha256.hexdigest()
