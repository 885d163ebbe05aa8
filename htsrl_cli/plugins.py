"""Discovery of environment, algorithm and network kinds through entry points.

A package declares a kind with an entry point in the group `htsrl.envs`, `htsrl.algorithms` or
`htsrl.networks`. The entry point's name is the value of `env.kind`, `algo.name` or `network.name`
that chooses the kind. htsrl declares its own kinds in the same way.

A package can also provide YAML files in a folder `configs`. An entry point in `htsrl.configs` names
the package, and Hydra searches this folder after htsrl's own.

Importing a kind is cheap, because it does not import the code of the environment, algorithm or
network. `Kind.load` imports that code. Executors import this module, so it imports only the
standard library.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# For each section that chooses a kind: the key that names the kind, and the entry point group.
SECTIONS: Mapping[str, tuple[str, str]] = {
    "env": ("kind", "htsrl.envs"),
    "algo": ("name", "htsrl.algorithms"),
    "network": ("name", "htsrl.networks"),
}
_CONFIGS = "htsrl.configs"


@dataclass(frozen=True)
class Kind:
    """A kind of environment, algorithm or network: the object that an entry point refers to.

    Attributes:
        config: dataclass with the section's keys for this kind; a subclass of `EnvConfig`,
            `AlgoConfig` or `NetworkConfig` (htsrl_cli.config.kinds).
        factory: `module:name` of the function or class that builds the environment, algorithm or
            network. `htsrl_cli.envs.registry`, `htsrl_cli.algorithms.registry` and
            `htsrl_cli.networks.registry` describe its arguments.
    """

    config: type[Any]
    factory: str

    def load(self) -> Callable[..., Any]:
        """Imports and returns the factory.

        Raises:
            ImportError: the factory's module, or a package that this module needs, is missing.
            AttributeError: the module does not define the factory.
        """
        factory: Callable[..., Any] = load(self.factory)
        return factory


def names(section: str) -> list[str]:
    """Returns the sorted names of all kinds that packages declare for a section."""
    return sorted(_declared(section))


def find(section: str, name: str) -> Kind:
    """Returns the kind called `name` that a package declares for a section.

    Raises:
        LookupError: there is no kind of this name.
        ImportError: the package that declares the kind cannot be imported.
    """
    kind = _declared(section)[name].load()
    assert isinstance(kind, Kind), f"the entry point {name} of {section} does not refer to a Kind"
    return kind


@cache
def _declared(section: str) -> dict[str, EntryPoint]:
    _, group = SECTIONS[section]
    return {entry.name: entry for entry in entry_points(group=group)}


@cache
def config_folders() -> tuple[Path, ...]:
    """Returns the `configs` folders of other packages, sorted by the entry points' names."""
    folders = []
    for entry in sorted(entry_points(group=_CONFIGS), key=lambda entry: entry.name):
        spec = find_spec(entry.value)
        if spec is None:
            continue
        folders += [Path(place) / "configs" for place in spec.submodule_search_locations or ()]
    return tuple(folder for folder in folders if folder.is_dir())


def load(path: str) -> Any:
    """Imports and returns the object that `path` names in the form `module:name`.

    The module may be in the working directory; see `import_here`.

    Raises:
        ImportError: the module, or a package that it needs, is missing.
        AttributeError: the module does not define the name.
    """
    module, _, name = path.partition(":")
    return getattr(import_here(module), name)


def import_here(module: str) -> Any:
    """Imports and returns a module, which may be in the working directory.

    Appends the working directory to `sys.path`.

    Raises:
        ImportError: the module, or a package that it needs, is missing.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)
