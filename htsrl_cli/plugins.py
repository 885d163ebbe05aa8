"""Finds the kinds of environments, algorithms and networks, this package's own and other packages'.

A kind is declared by an entry point in one of the groups `htsrl.envs`, `htsrl.algorithms` and
`htsrl.networks`; its name is what `env.kind`, `algo.name` or `network.name` says. This package
declares its own kinds in the same way. A package may also bring YAML files: an entry point in
`htsrl.configs` names the package, whose folder `configs` is then searched like this package's.

Importing a kind is cheap: what makes the environment, algorithm or network is imported when it is
first needed, so that listing and checking load nothing heavy. Free of everything but the standard
library: executors import this module.
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

# Sections of a configuration that choose a kind, the key that names it, and its entry points.
SECTIONS: Mapping[str, tuple[str, str]] = {
    "env": ("kind", "htsrl.envs"),
    "algo": ("name", "htsrl.algorithms"),
    "network": ("name", "htsrl.networks"),
}
_CONFIGS = "htsrl.configs"


@dataclass(frozen=True)
class Kind:
    """A kind of environment, algorithm or network; what an entry point names.

    Attributes:
        config: the dataclass of the section that chooses it, a subclass of `EnvConfig`,
            `AlgoConfig` or `NetworkConfig` (htsrl_cli.config.kinds).
        factory: `module:function` that makes it from the section; see `htsrl_cli.envs.registry`,
            `htsrl_cli.algorithms.registry` and `htsrl_cli.networks.registry` for its arguments.
    """

    config: type[Any]
    factory: str

    def load(self) -> Callable[..., Any]:
        """Imports the factory.

        Raises:
            ImportError: its module, or a package that the module needs, is missing.
        """
        factory: Callable[..., Any] = load(self.factory)
        return factory


def names(section: str) -> list[str]:
    """Returns the names of all kinds that a section can choose, sorted."""
    return sorted(_declared(section))


def find(section: str, name: str) -> Kind:
    """Returns the kind that a section chooses by `name`.

    Raises:
        LookupError: there is no such kind.
        ImportError: a package declares it and cannot be imported.
    """
    kind = _declared(section)[name].load()
    assert isinstance(kind, Kind), f"the entry point {name} of {section} is no htsrl_cli Kind"
    return kind


@cache
def _declared(section: str) -> dict[str, EntryPoint]:
    _, group = SECTIONS[section]
    return {entry.name: entry for entry in entry_points(group=group)}


def config_folders() -> list[Path]:
    """Returns the folders of YAML files that other packages bring, sorted by entry point."""
    folders = []
    for entry in sorted(entry_points(group=_CONFIGS), key=lambda entry: entry.name):
        spec = find_spec(entry.value)
        if spec is None:
            continue
        folders += [Path(place) / "configs" for place in spec.submodule_search_locations or ()]
    return [folder for folder in folders if folder.is_dir()]


def load(path: str) -> Any:
    """Imports what `module:name` names, also from the working directory.

    Raises:
        ImportError: the module, or a package that it needs, is missing.
        AttributeError: the module has no such name.
    """
    module, _, name = path.partition(":")
    return getattr(import_here(module), name)


def import_here(module: str) -> Any:
    """Imports a module, also from the working directory, as `python -m` does.

    Raises:
        ImportError: the module, or a package that it needs, is missing.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)
