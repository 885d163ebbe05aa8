"""A slot: one interval of experience, as named arrays.

Shapes: T steps of an interval, B columns, D action dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.storage.memory import Array, ArrayType

# What a boolean cell holds until it is written: neither False nor True.
UNWRITTEN = 0xAB


class Episode(NamedTuple):
    """A whole game that ended.

    Attributes:
        raw_return: its score, in the environment's own rewards.
        training_return: sum of the rewards that were trained on; a mean over the players.
        length: in env steps.
    """

    raw_return: float
    training_return: float
    length: int


@dataclass(frozen=True)
class Field:
    """One array of a slot.

    Attributes:
        shape: of a cell.
        dtype: as NumPy names it.
        num_extra_rows: rows beyond the T steps; 1 where the observation after the last step counts.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_extra_rows: int = 0

    def layout(self, num_steps: int, num_columns: int) -> ArrayType:
        """Returns shape [rows, B, *shape] and dtype."""
        return (num_steps + self.num_extra_rows, num_columns, *self.shape), self.dtype


def slot_fields(spec: EnvSpec) -> tuple[Field, ...]:
    """Returns the arrays of a slot, in the order in which they are hashed.

    A new array is a new line here, and an attribute of `Slot`: executors, actors and the learner
    find it by its name, and it is saved, hashed and restored with the others. Slots in earlier
    checkpoints lack it: `htsrl_cli.checkpoints.upgrade` says what they had instead.
    """
    draws = (spec.actions.num_dims,)
    return (
        Field("obs", spec.obs_shape, spec.obs_dtype, num_extra_rows=1),
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
    """One interval of experience, every cell at an address that no timing can change.

    Args:
        arrays: by name, in the order of `slot_fields`.

    Attributes:
        obs: [T + 1, B, *obs_shape]; row T is the observation after the last step.
        noise: float32 [T, B, D]; the random numbers that sample the actions.
        actions: [T, B, D].
        log_probs: float32 [T, B], of the actions.
        values: float32 [T + 1, B].
        versions: int64 [T + 1, B]; of the parameters that made action and value.
        rewards: float32 [T, B], as trained on.
        terminated, truncated: bool [T, B].
        final_values: float32 [T, B]; value of a truncated episode's last observation, else 0.
        episode_returns, training_returns: float64 [T, B]; of a game that ended with this step
            (see `Episode`), in its environment's first column, else 0.
        episode_lengths: int64 [T, B]; its env steps; 0 where no game ended.
    """

    obs: Array
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
        # As attributes they are found faster, and type checkers know them.
        self.__dict__.update(self._arrays)

    def arrays(self) -> dict[str, Array]:
        """Returns the arrays by name, in a fixed order."""
        return dict(self._arrays)

    def poison(self) -> None:
        """Fills the slot with values that show when read before they are written."""
        poison(list(self._arrays.values()))

    def check_filled(self) -> None:
        """Raises AssertionError if a boolean cell has never been written.

        Other arrays show it by themselves: no loss survives a NaN, and no action, version or length
        is as small as an integer's poison.
        """
        for name, array in self._arrays.items():
            if array.dtype == np.bool_ and array.view(np.uint8).max() > 1:
                raise AssertionError(f"slot.{name} has cells that were never written")

    def sha256(self, previous: str = "") -> str:
        """Returns the digest of `previous` and every byte of the slot."""
        digest = hashlib.sha256(bytes.fromhex(previous))
        for array in self._arrays.values():
            digest.update(array.data)
        return digest.hexdigest()

    def episodes(self) -> Iterator[Episode]:
        """Yields every game that ended, in order of address."""
        for t, c in np.argwhere(self.episode_lengths > 0):
            yield Episode(
                float(self.episode_returns[t, c]),
                float(self.training_returns[t, c]),
                int(self.episode_lengths[t, c]),
            )


def poison(arrays: Sequence[Array]) -> None:
    """Fills arrays with values that show when read before they are written."""
    for array in arrays:
        if array.dtype.kind == "f":
            array.fill(np.nan)
        elif array.dtype.kind == "i":
            array.fill(-(2**62))
        elif array.dtype == np.uint16:
            array.fill(0xFFFF)  # bfloat16's NaN
        else:
            array.view(np.uint8).fill(UNWRITTEN)
