"""The two-slot ring: executors and actors can fill one slot while the learner reads the other.

The ring consists of NumPy arrays in anonymous shared memory, without locks. Each cell has one
writer at a time. Messages through pipes order writes before reads, because the system calls on both
sides are full memory barriers on every platform that Linux or macOS supports.

In shapes, T is the number of env steps of each environment in a rollout, B is the number of columns
and S is the numbers of a memory state, 0 if the policies have no memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.storage.memory import Array, ArrayType, SharedArrays
from htsrl_cli.storage.slot import Slot, poison, slot_fields

_SLOTS = (0, 1)


class Ring:
    """Two slots in shared memory; rollout j fills slot j % 2.

    Args:
        spec: shapes and dtypes of a column's observations and actions.
        num_steps: T, the number of env steps of each environment in a rollout.
        num_columns: B, the number of columns.
        activation_layout: shape and dtype of a cell of each array that `activations` returns.
        memory_width: S.

    Attributes:
        slots: the two slots.
        final_obs: [B, *obs_shape]; the last observation of each column's most recently truncated
            episode, which is kept until an actor has computed the observation's value. This scratch
            memory belongs to no slot.
        memories: float32 [B, S]; the memory state of each column before its next observation.
            Actors replace it at each env step, and executors set it to 0 where an episode ends.
        final_memories: float32 [B, S]; the memory state that belongs to `final_obs`.

    Raises:
        NotEnoughMemoryError: the slots exceed the free memory.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_steps: int,
        num_columns: int,
        activation_layout: Sequence[ArrayType] = (),
        memory_width: int = 0,
    ) -> None:
        fields = slot_fields(spec, memory_width)
        layout: dict[str, ArrayType] = {}
        for i in _SLOTS:
            for field in fields:
                layout[f"{i}/{field.name}"] = field.layout(num_steps, num_columns)
            for k, (shape, dtype) in enumerate(activation_layout):
                layout[f"{i}/activations/{k}"] = ((num_steps, num_columns, *shape), dtype)
        layout["final_obs"] = ((num_columns, *spec.obs_shape), spec.obs_dtype)
        layout |= dict.fromkeys(
            ("memories", "final_memories"), ((num_columns, memory_width), "float32")
        )
        layout["rollout"] = ((1,), "int64")
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
        self.memories, self.final_memories = memory["memories"], memory["final_memories"]
        self._rollout = memory["rollout"]

    def __getstate__(self) -> SharedArrays:
        return self._memory

    def __setstate__(self, memory: SharedArrays) -> None:
        self._adopt(memory)

    @property
    def rollout(self) -> int:
        """The number of the rollout that is being collected, counted from 0."""
        return int(self._rollout[0])

    @property
    def num_steps(self) -> int:
        """T, the number of env steps of each environment in a rollout."""
        return len(self.slots[0].rewards)

    @property
    def num_columns(self) -> int:
        """B, the number of columns."""
        return len(self.final_obs)

    def slot(self, rollout: int) -> Slot:
        """Returns the slot of rollout number `rollout`."""
        return self.slots[rollout % 2]

    def activations(self, rollout: int) -> list[Array]:
        """Returns the activations that actors keep in rollout number `rollout`, each [T, B, ...].

        The list is empty unless actors keep activations; see `htsrl_cli.networks.activations`.
        Activations can be recomputed from observations and parameters, so they are not part of the
        slot.
        """
        return self._activations[rollout % 2]

    def begin(self, rollout: int, obs: Array, noise: Array) -> None:
        """Opens the slot of rollout number `rollout`; writes its first observations and its noise.

        Also writes the memory states before these observations.

        Args:
            obs: [B, *obs_shape]; the first observations.
            noise: float32 [T, B, D]; the random numbers from which actions are sampled, with D
                action dimensions.
        """
        slot = self.slot(rollout)
        slot.obs[0] = obs
        slot.noise[:] = noise
        if slot.memories is not None:
            slot.memories[0] = self.memories
        self._rollout[0] = rollout


def _is_of_slot(key: str, i: int) -> bool:
    """Returns True if `key` names an array of slot `i` other than its activations."""
    slot, _, name = key.partition("/")
    return slot == str(i) and "/" not in name
