"""The two-slot ring: one slot is filled while the other is learned from.

It is numpy over anonymous shared memory. Nothing here synchronises: a cell has one writer at a
time, and the pipes that say "ready" order the writes before the reads (a system call on either side
is a full barrier on every platform that Linux and macOS run on).

Shapes: T steps of an interval, B columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.storage.memory import Array, ArrayType, SharedArrays
from htsrl_cli.storage.slot import Slot, poison, slot_fields

_SLOTS = (0, 1)


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
        fields = slot_fields(spec)
        layout: dict[str, ArrayType] = {}
        for i in _SLOTS:
            for field in fields:
                layout[f"{i}/{field.name}"] = field.layout(num_steps, num_columns)
            for k, (shape, dtype) in enumerate(activation_layout):
                layout[f"{i}/activations/{k}"] = ((num_steps, num_columns, *shape), dtype)
        layout["final_obs"] = ((num_columns, *spec.obs_shape), spec.obs_dtype)
        layout["interval"] = ((1,), "int64")
        self._adopt(SharedArrays(layout))
        for i in _SLOTS:
            self.slots[i].poison()
            poison(self._activations[i])

    def _adopt(self, memory: SharedArrays) -> None:
        self._memory = memory
        self.slots = tuple(
            Slot({key.split("/")[1]: memory[key] for key in memory if _is_of_slot(key, i)})
            for i in _SLOTS
        )
        self._activations = tuple(
            [array for name, array in memory.items() if name.startswith(f"{i}/activations/")]
            for i in _SLOTS
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
        """Returns the slot that holds an interval."""
        return self.slots[interval % 2]

    def activations(self, interval: int) -> list[Array]:
        """Returns what actors keep for the learner, each [T, B, ...]; see `networks.activations`.

        Most runs keep none. They follow from observations and parameters: no part of the slot.
        """
        return self._activations[interval % 2]

    def begin(self, interval: int, obs: Array, noise: Array) -> None:
        """Opens an interval's slot with first observations [B, *obs_shape] and random numbers."""
        self.slot(interval).obs[0] = obs
        self.slot(interval).noise[:] = noise
        self._interval[0] = interval


def _is_of_slot(key: str, i: int) -> bool:
    """Returns True for the name in shared memory of an array of slot `i`."""
    slot, _, name = key.partition("/")
    return slot == str(i) and "/" not in name
