"""What the roles share: slots, the two-slot ring, the parameter store and the board.

All of it is numpy over anonymous shared memory. Nothing here synchronises: a cell has one writer
at a time, and the pipes that say "ready" order the writes before the reads (a system call on
either side is a full barrier on every platform that Linux and macOS run on).

Shapes: T steps of an interval, B columns, D action dimensions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import NamedTuple

import numpy as np

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.storage.memory import ALIGNMENT, Array, ArrayType, Layout, SharedArrays

# What an executor asks of an actor is a pair (column, t): act on row t; value row t where t == T;
# value the column's `final_obs` for step -1 - t where t < 0.
Request = tuple[int, int]
REQUEST_WIDTH = 2
# Of a worker's line on the board, see `Board`.
_SINCE, _BUSY_S, _LEFT_AT, _PASSES = range(4)


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
class Slot:
    """One interval of experience, every cell at an address that no timing can change.

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

    @staticmethod
    def layout(spec: EnvSpec, num_steps: int, num_columns: int) -> dict[str, ArrayType]:
        """Shape and dtype of every array."""
        steps, rows = (num_steps, num_columns), (num_steps + 1, num_columns)
        draws = (*steps, spec.actions.num_dims)
        return {
            "obs": ((*rows, *spec.obs_shape), spec.obs_dtype),
            "noise": (draws, "float32"),
            "actions": (draws, spec.actions.dtype),
            "log_probs": (steps, "float32"),
            "values": (rows, "float32"),
            "versions": (rows, "int64"),
            "rewards": (steps, "float32"),
            "terminated": (steps, "bool"),
            "truncated": (steps, "bool"),
            "final_values": (steps, "float32"),
            "episode_returns": (steps, "float64"),
            "training_returns": (steps, "float64"),
            "episode_lengths": (steps, "int64"),
        }

    def arrays(self) -> dict[str, Array]:
        """The arrays by name, in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def sha256(self, previous: str = "") -> str:
        """Digest of `previous` and every byte of the slot."""
        digest = hashlib.sha256(bytes.fromhex(previous))
        for array in self.arrays().values():
            digest.update(array.data)
        return digest.hexdigest()

    def check_filled(self) -> None:
        """Looks for booleans that were never written; other cells' poison shows by itself.

        Raises:
            AssertionError: there are some; the message names the field.
        """
        for name, array in self.arrays().items():
            if array.dtype == bool and array.view(np.uint8).max() > 1:
                raise AssertionError(f"slot.{name} has cells that were never written")

    def episodes(self) -> Iterator[Episode]:
        """Every game that ended, in order of address."""
        for t, c in np.argwhere(self.episode_lengths > 0):
            yield Episode(
                float(self.episode_returns[t, c]),
                float(self.training_returns[t, c]),
                int(self.episode_lengths[t, c]),
            )


class Ring:
    """Two slots: interval j fills slot j % 2 while the other is learned from.

    Args:
        activation_layout: of a row of each array that `activations` returns.

    Attributes:
        final_obs: [B, *obs_shape]; a truncated episode's last observation waits here for its
            value. Scratch: not a part of any slot.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_steps: int,
        num_columns: int,
        activation_layout: Sequence[ArrayType] = (),
    ) -> None:
        slot = Slot.layout(spec, num_steps, num_columns)
        layout: dict[str, ArrayType] = {
            f"{i}/{name}": entry for i in (0, 1) for name, entry in slot.items()
        }
        for i, (k, (shape, dtype)) in product((0, 1), enumerate(activation_layout)):
            layout[f"{i}/activations/{k}"] = ((num_steps, num_columns, *shape), dtype)
        layout["final_obs"] = ((num_columns, *spec.obs_shape), spec.obs_dtype)
        layout["interval"] = ((1,), "int64")
        self._adopt(SharedArrays(layout))
        for i in (0, 1):
            _poison([*self.slots[i].arrays().values(), *self._activations[i]])

    def _adopt(self, memory: SharedArrays) -> None:
        self._memory = memory
        self.slots = tuple(
            Slot(**{field.name: memory[f"{i}/{field.name}"] for field in fields(Slot)})
            for i in (0, 1)
        )
        self._activations = tuple(
            [array for name, array in memory.items() if name.startswith(f"{i}/activations/")]
            for i in (0, 1)
        )
        self.final_obs = memory["final_obs"]
        self._interval = memory["interval"]

    def __getstate__(self) -> SharedArrays:
        return self._memory

    def __setstate__(self, memory: SharedArrays) -> None:
        self._adopt(memory)

    @property
    def interval(self) -> int:
        """The interval that is being collected."""
        return int(self._interval[0])

    @property
    def num_steps(self) -> int:
        """T, env steps of a column in an interval."""
        return len(self.slots[0].rewards)

    @property
    def num_columns(self) -> int:
        """B, decision-makers."""
        return len(self.final_obs)

    def slot(self, interval: int) -> Slot:
        """The slot that holds interval `interval`."""
        return self.slots[interval % 2]

    def activations(self, interval: int) -> list[Array]:
        """Those that actors keep for the learner, each [T, B, ...]; see `networks.activations`.

        Most runs keep none. They follow from observations and parameters: no part of the slot.
        """
        return self._activations[interval % 2]

    def begin(self, interval: int, obs: Array, noise: Array) -> None:
        """Opens the slot of `interval`: first observations [B, *obs_shape] and random numbers."""
        self.slot(interval).obs[0] = obs
        self.slot(interval).noise[:] = noise
        self._interval[0] = interval


def _poison(arrays: Iterable[Array]) -> None:
    """Fills arrays with values that show when read before they are written."""
    for array in arrays:
        if array.dtype.kind == "f":
            array.fill(np.nan)
        elif array.dtype.kind == "i":
            array.fill(-(2**62))
        elif array.dtype == np.uint16:
            array.fill(0xFFFF)  # bfloat16's NaN
        elif array.dtype.kind == "u":
            array.fill(0xAB)
        elif array.dtype == bool:
            array.view(np.uint8).fill(0xAB)  # neither false nor true, see `Slot.check_filled`


class ParameterStore:
    """Flat parameters in two halves, float32 [2, P]: the published version and the next one.

    The next one is written while actors use the other.
    """

    def __init__(self, num_parameters: int) -> None:
        layout: Layout = {"halves": ((2, num_parameters), "float32"), "version": ((1,), "int64")}
        self._memory = SharedArrays(layout)
        self._memory["version"][0] = -1

    @property
    def values(self) -> Array:
        """The published version, in the order of the policies' `parameters()`."""
        return self.half(self.version)

    def half(self, version: int) -> Array:
        """Where `version` is kept, [P]: the published one's, or the next one's to be written."""
        half: Array = self._memory["halves"][version % 2]
        return half

    @property
    def version(self) -> int:
        """The version published last; -1 before the first."""
        return int(self._memory["version"][0])

    def publish(self, version: int) -> None:
        """Actors use `version` from now on. Only at a barrier: no request is then outstanding."""
        self._memory["version"][0] = version


class Board:
    """Where workers say what they do: since when they are busy, and for how long in all.

    A worker writes its own cells; the runner reads them to find hangs and to report load.
    """

    def __init__(self, num_workers: int) -> None:
        # A worker's numbers are a cache line of their own: the others write on other cores.
        layout: Layout = {"lines": ((num_workers, ALIGNMENT // 8), "float64")}
        self._memory = SharedArrays(layout)

    def enter(self, worker: int) -> None:
        """The worker starts something that may hang; what it did before counts as busy."""
        now = time.monotonic()
        self._account(worker, now, since=now)

    def leave(self, worker: int) -> None:
        """The worker goes to wait; the time since `enter` counts as busy."""
        now = time.monotonic()
        self._account(worker, now, since=0.0)
        self._memory["lines"][worker, _LEFT_AT] = now

    def count_pass(self, worker: int) -> None:
        """The worker has made a forward pass."""
        self._memory["lines"][worker, _PASSES] += 1

    def _account(self, worker: int, now: float, since: float) -> None:
        line = self._memory["lines"][worker]
        if line[_SINCE]:
            line[_BUSY_S] += now - line[_SINCE]
        line[_SINCE] = since

    def since(self) -> Array:
        """When each worker entered what it is busy with, [workers]; 0 while it waits; a copy."""
        return self._memory["lines"][:, _SINCE].copy()

    def left_at(self) -> Array:
        """When each worker last went to wait, [workers], by `time.monotonic`; a copy."""
        return self._memory["lines"][:, _LEFT_AT].copy()

    def num_passes(self) -> int:
        """Forward passes that all workers have made."""
        return int(self._memory["lines"][:, _PASSES].sum())

    def busy_s(self) -> Array:
        """Seconds that each worker has been busy in all, [workers]; a copy."""
        return self._memory["lines"][:, _BUSY_S].copy()
