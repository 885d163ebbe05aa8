"""The parameter store: the published version of the parameters, and the next version."""

from __future__ import annotations

from collections.abc import Mapping

from htsrl_cli.storage.memory import Array, ArrayType, SharedArrays


class ParameterStore:
    """The networks' parameters and buffers by name, in two halves of shared memory.

    Actors can read the published version from one half while the learner writes the next version
    to the other half.

    Args:
        layout: shape and dtype of every array.
    """

    def __init__(self, layout: Mapping[str, ArrayType]) -> None:
        halves = {f"{i}/{name}": entry for i in (0, 1) for name, entry in layout.items()}
        self._adopt(SharedArrays(halves | {"version": ((1,), "int64")}))
        self._version[0] = -1

    def _adopt(self, memory: SharedArrays) -> None:
        self._memory = memory
        self._version = memory["version"]
        self._halves = tuple(
            {key[2:]: array for key, array in memory.items() if key.startswith(f"{i}/")}
            for i in (0, 1)
        )

    def __getstate__(self) -> SharedArrays:
        return self._memory

    def __setstate__(self, memory: SharedArrays) -> None:
        self._adopt(memory)

    @property
    def values(self) -> dict[str, Array]:
        """The arrays of the published version, by name."""
        return self.half(self.version)

    def half(self, version: int) -> dict[str, Array]:
        """Returns the arrays of `version`, which must be the published or the next version."""
        return self._halves[version % 2]

    @property
    def version(self) -> int:
        """The number of the published version; -1 before the first version is published."""
        return int(self._version[0])

    def publish(self, version: int) -> None:
        """Makes actors use `version` from now on.

        Call it at a barrier only, when no request is pending.
        """
        self._version[0] = version
