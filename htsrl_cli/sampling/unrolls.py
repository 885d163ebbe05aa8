"""The queue of `runner=async`: buffers for unrolls in shared memory, and who may write to them.

An unroll is the experience of one environment over T env steps. A buffer holds one unroll. All
buffers together are one wide slot: buffer u is columns u * P to (u + 1) * P - 1, where P is the
number of players. Actors therefore serve requests for (column, step) as in a ring.

A buffer is free, or being filled by an executor, or full. The numbers of free and of full buffers
wait in two pipes: the main process gives free buffers to whichever executor is first, and executors
give back full buffers in order of arrival. If no buffer is free, environments wait, so a slow
learner limits the policy lag and the memory. Nothing spins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.sampling.schedule import Unroll, as_runs
from htsrl_cli.storage.memory import Array, ArrayType, SharedArrays
from htsrl_cli.storage.slot import Cells, Slot, slot_fields
from htsrl_cli.workers.process import Pipe


class UnrollQueue(Cells):
    """The buffers of unrolls.

    Args:
        num_steps: T, the number of env steps in an unroll.
        num_buffers: U, the number of buffers.
        num_envs: number of environments that fill them.
        memory_width: the numbers of a memory state; 0 if the policies have no memory.

    Attributes:
        num_players: P, the number of columns of a buffer.
        slot_of_buffers: the slot with all buffers, U * P columns.
        final_obs: [U * P, *obs_shape]; see `Ring.final_obs`.
        memories, final_memories: float32 [U * P, S], with memory states of S numbers; see `Ring`.
        final_versions: int64 [T, U * P]; the version of the parameters that computed
            `slot.final_values`.
        wanted: int64 [T + 1, U * P]; in a replay, the version with which each request must be
            served.
        wanted_finals: int64 [T, U * P]; the same for the requests of `final_values`.
        consumed: int64 [num_envs]; for each environment, how many of its unrolls updates have used.
        owners: int64 [U, 4]; index of the environment that fills the buffer, the unroll's number
            among the environment's unrolls, the index of the executor and, once the buffer is full,
            the version that was published at this moment.
        published: int64 [1]; the newest published version.
        free: the pipe of free buffers.
        full: the pipe of full buffers.

    Raises:
        NotEnoughMemoryError: the buffers exceed the free memory.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_steps: int,
        num_buffers: int,
        num_envs: int,
        memory_width: int = 0,
    ) -> None:
        num_columns = num_buffers * spec.num_players
        layout: dict[str, ArrayType] = {
            f"slot/{field.name}": field.layout(num_steps, num_columns)
            for field in slot_fields(spec, memory_width)
        }
        layout["final_obs"] = ((num_columns, *spec.obs_shape), spec.obs_dtype)
        layout |= dict.fromkeys(
            ("memories", "final_memories"), ((num_columns, memory_width), "float32")
        )
        layout["final_versions"] = ((num_steps, num_columns), "int64")
        layout["wanted"] = ((num_steps + 1, num_columns), "int64")
        layout["wanted_finals"] = ((num_steps, num_columns), "int64")
        layout["consumed"] = ((num_envs,), "int64")
        layout["owners"] = ((num_buffers, 4), "int64")
        layout["published"] = ((1,), "int64")
        self.free, self.full = Pipe(), Pipe()
        self._adopt(SharedArrays(layout))
        self.slot_of_buffers.poison()

    def _adopt(self, memory: SharedArrays) -> None:
        self._memory = memory
        self.slot_of_buffers = Slot(
            {key.removeprefix("slot/"): memory[key] for key in memory if key.startswith("slot/")}
        )
        self.final_obs = memory["final_obs"]
        self.memories, self.final_memories = memory["memories"], memory["final_memories"]
        self.final_versions = memory["final_versions"]
        self.wanted, self.wanted_finals = memory["wanted"], memory["wanted_finals"]
        self.consumed, self.owners = memory["consumed"], memory["owners"]
        self.published = memory["published"]
        self.num_players = self.num_columns // len(self.owners)

    def __getstate__(self) -> tuple[SharedArrays, Pipe, Pipe]:
        return self._memory, self.free, self.full

    def __setstate__(self, state: tuple[SharedArrays, Pipe, Pipe]) -> None:
        memory, self.free, self.full = state
        self._adopt(memory)

    @property
    def rollout(self) -> int:
        """Always 0: there is one slot, which is always open."""
        return 0

    @property
    def num_steps(self) -> int:
        """T, the number of env steps in an unroll."""
        return len(self.slot_of_buffers.rewards)

    @property
    def num_columns(self) -> int:
        """U * P, the number of columns of all buffers."""
        return len(self.final_obs)

    def slot(self, rollout: int) -> Slot:
        """Returns the slot of all buffers."""
        return self.slot_of_buffers

    def activations(self, rollout: int) -> list[Array]:
        """Returns an empty list: the learner's parameters differ from those of the actors."""
        return []

    def columns(self, buffer: int) -> slice:
        """Returns the columns of a buffer."""
        return slice(buffer * self.num_players, (buffer + 1) * self.num_players)

    def owner(self, buffer: int) -> tuple[int, int]:
        """Returns the environment that fills a buffer, and the number of its unroll."""
        env, number, *_ = self.owners[buffer].tolist()
        return env, number

    def unroll(self, buffer: int) -> Unroll:
        """Returns what is in a full buffer: whose unroll, and the versions that served it."""
        slot, columns = self.slot_of_buffers, self.columns(buffer)
        # Only truncated episodes that have not terminated have a value of their last observation.
        asked = slot.truncated[:, columns] & ~slot.terminated[:, columns]
        finals = self.final_versions[:, columns]
        return Unroll(
            *self.owner(buffer),
            [as_runs(slot.versions[:, c]) for c in range(columns.start, columns.stop)],
            [[int(t), int(player), int(finals[t, player])] for t, player in np.argwhere(asked)],
        )

    def one_unroll(self) -> Slot:
        """Returns a slot for one unroll in this process's own memory."""
        arrays = self.slot_of_buffers.arrays()
        shapes = {n: (len(a), self.num_players, *a.shape[2:]) for n, a in arrays.items()}
        return Slot({n: np.empty(shapes[n], a.dtype) for n, a in arrays.items()})

    def release(self, buffers: Sequence[int]) -> None:
        """Marks buffers as free."""
        self.free.write(buffers)


def copy_unroll(source: Slot, i: int, target: Slot, j: int, num_players: int) -> None:
    """Copies unroll number i of a slot to the place of unroll number j of another slot."""
    read, written = (slice(k * num_players, (k + 1) * num_players) for k in (i, j))
    arrays = target.arrays()
    for name, array in source.arrays().items():
        arrays[name][:, written] = array[:, read]


def local_slot(spec: EnvSpec, num_steps: int, num_columns: int, memory_width: int = 0) -> Slot:
    """Returns a slot in this process's own memory."""
    fields = slot_fields(spec, memory_width)
    layout = {field.name: field.layout(num_steps, num_columns) for field in fields}
    return Slot({name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()})
