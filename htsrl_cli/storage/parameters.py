"""The parameter store: the published version of the parameters, and its neighbors."""

from __future__ import annotations

from collections.abc import Mapping

from htsrl_cli.storage.memory import Array, ArrayType, SharedArrays


class ParameterStore:
    """The networks' parameters and buffers by name, in several places of shared memory.

    Version v is in place v % `num_places`. Actors can read the published version while the learner
    writes the next version to another place. Older versions stay until they are overwritten.

    Args:
        layout: shape and dtype of every array.
        num_places: number of versions that the store holds, 2 or more.
    """

    def __init__(self, layout: Mapping[str, ArrayType], num_places: int = 2) -> None:
        places = {f"{i}/{name}": entry for i in range(num_places) for name, entry in layout.items()}
        self._adopt(SharedArrays(places | {"version": ((1,), "int64")}))
        self._version[0] = -1

    def _adopt(self, memory: SharedArrays) -> None:
        self._memory = memory
        self._version = memory["version"]
        places: dict[int, dict[str, Array]] = {}
        for key, array in memory.items():
            place, _, name = key.partition("/")
            if name:
                places.setdefault(int(place), {})[name] = array
        self._places = [places[i] for i in range(len(places))]

    def __getstate__(self) -> SharedArrays:
        return self._memory

    def __setstate__(self, memory: SharedArrays) -> None:
        self._adopt(memory)

    @property
    def num_places(self) -> int:
        """Number of versions that the store holds, the next version included."""
        return len(self._places)

    @property
    def values(self) -> dict[str, Array]:
        """The arrays of the published version, by name."""
        return self.place(self.version)

    def place(self, version: int) -> dict[str, Array]:
        """Returns the arrays of `version`, by name.

        It must be the next version, the published one, or one of the `num_places` - 2 before it.
        """
        return self._places[version % len(self._places)]

    @property
    def version(self) -> int:
        """The number of the published version; -1 before the first version is published."""
        return int(self._version[0])

    def publish(self, version: int) -> None:
        """Makes actors use `version` from now on."""
        self._version[0] = version
