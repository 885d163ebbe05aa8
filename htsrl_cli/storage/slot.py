"""A slot: the named arrays of one rollout.

In shapes, T is the number of env steps of each environment in a rollout, B is the number of
columns, D is the number of action dimensions, M is the number of categories in all of them and S is
the numbers of a memory state (`htsrl_cli.networks.recurrent`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.storage.memory import Array, ArrayType

# The byte of a boolean cell until it is written: neither False nor True.
UNWRITTEN = 0xAB


class Episode(NamedTuple):
    """The results of a whole game that has ended.

    Attributes:
        raw_return: the sum of the environment's own rewards: the raw score.
        training_return: the sum of the training rewards, averaged over the players.
        length: number of env steps.
    """

    raw_return: float
    training_return: float
    length: int


@dataclass(frozen=True)
class Field:
    """The description of an array of a slot.

    Attributes:
        name: name of the array in the slot.
        shape: shape of a cell.
        dtype: NumPy's name of the dtype.
        num_extra_rows: number of rows in addition to the rows of the T env steps; 1 if the array
            also has a row for the observation after the last env step.
        is_first_row: True if the array has only one row, which belongs to the first env step.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_extra_rows: int = 0
    is_first_row: bool = False

    def layout(self, num_steps: int, num_columns: int) -> ArrayType:
        """Returns the array's shape, [rows, B, *shape], and its dtype."""
        num_rows = 1 if self.is_first_row else num_steps + self.num_extra_rows
        return (num_rows, num_columns, *self.shape), self.dtype


def slot_fields(spec: EnvSpec, memory_width: int = 0) -> tuple[Field, ...]:
    """Returns the descriptions of a slot's arrays, in the order in which the arrays are hashed.

    To add an array, add a line here and an attribute to `Slot`. Executors, actors and the learner
    then find it by its name, and it is saved, hashed and restored like the other arrays. Slots in
    earlier checkpoints lack it: make `htsrl_cli.checkpoints.upgrade` add it.

    Args:
        memory_width: S; 0 if the policies have no memory.
    """
    draws = (spec.actions.num_dims,)
    masks = (Field("masks", (spec.actions.num_choices,), "bool", num_extra_rows=1),)
    memories = (Field("memories", (memory_width,), "float32", is_first_row=True),)
    return (
        *(memories if memory_width else ()),
        Field("obs", spec.obs_shape, spec.obs_dtype, num_extra_rows=1),
        *(masks if spec.has_masks else ()),
        Field("noise", draws, "float32"),
        Field("actions", draws, spec.actions.dtype),
        Field("log_probs", (), "float32"),
        Field("values", (), "float32", num_extra_rows=1),
        Field("versions", (), "int64", num_extra_rows=1),
        Field("rewards", (), "float32"),
        Field("terminated", (), "bool"),
        Field("truncated", (), "bool"),
        Field("final_values", (), "float32"),
        Field("episode_returns", (), "float64"),
        Field("training_returns", (), "float64"),
        Field("episode_lengths", (), "int64"),
    )


class Slot:
    """The experience of one rollout, in cells whose addresses [t, c] do not depend on timing.

    Args:
        arrays: arrays by name, in the order of `slot_fields`.

    Attributes:
        memories: float32 [1, B, S]; the memory state before row 0, which is 0 if this row begins an
            episode. None if the policies have no memory.
        obs: [T + 1, B, *obs_shape]; row T is the observation after the last env step.
        masks: bool [T + 1, B, M]; True for the actions that are allowed for each observation. None
            if the environment gives no masks (`EnvSpec.has_masks`).
        noise: float32 [T, B, D]; the random numbers used to sample the actions.
        actions: [T, B, D]; int64, or float32 for Gaussian actions.
        log_probs: float32 [T, B]; log-probabilities of the actions.
        values: float32 [T + 1, B]; value estimates of the observations.
        versions: int64 [T + 1, B]; the version of the parameters that computed action and value.
        rewards: float32 [T, B]; the training rewards.
        terminated: bool [T, B]; True where the env step terminated its episode.
        truncated: bool [T, B]; True where the env step truncated its episode, even if
            `terminated` is also True.
        final_values: float32 [T, B]; the value estimate of the last observation of an episode that
            was truncated but not terminated; 0 in all other cells.
        episode_returns: float64 [T, B]; the raw score of the game that ended with the env step, in
            the environment's first column; 0 in all other cells.
        training_returns: float64 [T, B]; the sum of that game's training rewards, averaged over the
            players, in the same cell; 0 in all other cells.
        episode_lengths: int64 [T, B]; the number of env steps of that game, in the same cell; 0 in
            all other cells.
    """

    memories: Array | None = None
    obs: Array
    masks: Array | None = None
    noise: Array
    actions: Array
    log_probs: Array
    values: Array
    versions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    final_values: Array
    episode_returns: Array
    training_returns: Array
    episode_lengths: Array

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)
        # Attributes are faster than dictionary entries, and known to type checkers.
        self.__dict__.update(self._arrays)

    def arrays(self) -> dict[str, Array]:
        """Returns the arrays by name, in the order of `slot_fields`."""
        return dict(self._arrays)

    def poison(self) -> None:
        """Fills the slot with invalid values, so that reads of unwritten cells are noticed."""
        poison(list(self._arrays.values()))

    def check_filled(self) -> None:
        """Checks that every boolean cell has been written.

        Other arrays need no check: an unwritten NaN spreads to the loss, and the integer that marks
        unwritten cells is not a valid action, version or length. Unwritten uint8 observations go
        unnoticed.

        Raises:
            AssertionError: a boolean cell has never been written.
        """
        for name, array in self._arrays.items():
            if array.dtype == np.bool_ and array.view(np.uint8).max() > 1:
                raise AssertionError(f"slot.{name} has cells that were never written")

    def sha256(self, previous: str = "") -> str:
        """Returns one SHA-256 (hex digits) of the digest `previous` followed by the slot's bytes.

        If each call gets the result of the previous call, the last result covers all rollouts.
        """
        digest = hashlib.sha256(bytes.fromhex(previous))
        for array in self._arrays.values():
            digest.update(array.data)
        return digest.hexdigest()

    def episodes(self) -> Iterator[tuple[int, Episode]]:
        """Yields every game that ended, in order of env step and column: env step and results."""
        for t, c in np.argwhere(self.episode_lengths > 0):
            yield (
                int(t),
                Episode(
                    float(self.episode_returns[t, c]),
                    float(self.training_returns[t, c]),
                    int(self.episode_lengths[t, c]),
                ),
            )

    def columns(self, columns: slice) -> Slot:
        """Returns a slot with some of the columns, whose arrays are copies in memory order."""
        arrays = self._arrays.items()
        return Slot({n: np.ascontiguousarray(array[:, columns]) for n, array in arrays})


class Cells(Protocol):
    """The memory that executors and actors fill: a ring, or a queue.

    Attributes:
        final_obs, memories, final_memories: see `htsrl_cli.storage.ring.Ring`.
    """

    final_obs: Array
    memories: Array
    final_memories: Array

    @property
    def rollout(self) -> int:
        """The number of the rollout that is being collected."""

    @property
    def num_steps(self) -> int:
        """T, the number of env steps that fill a column."""

    @property
    def num_columns(self) -> int:
        """The number of columns."""

    def slot(self, rollout: int) -> Slot:
        """Returns the slot of rollout number `rollout`."""

    def activations(self, rollout: int) -> list[Array]:
        """Returns the activations that actors keep in rollout number `rollout`."""


def poison(arrays: Sequence[Array]) -> None:
    """Fills arrays with invalid values, so that reads of unwritten cells are noticed.

    The filler is a valid value of uint8 arrays, so reads of their unwritten cells go unnoticed.
    """
    for array in arrays:
        if array.dtype.kind == "f":
            array.fill(np.nan)
        elif array.dtype.kind == "i":
            array.fill(-(2**62))
        elif array.dtype == np.uint16:
            array.fill(0xFFFF)  # bfloat16's NaN
        else:
            array.view(np.uint8).fill(UNWRITTEN)
