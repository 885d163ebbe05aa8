"""`htsrl list`: the options of the configuration groups, a line each, with a description."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from htsrl_cli.cli.compose import configs_dir, parse_overrides
from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.errors import UsageError

# Parts that other files are made of, and Hydra's own.
_NOT_CHOSEN = ("base", "hydra")
# Each verb's key that names a run folder or a checkpoint.
_PATHS = {"train": "resume", "eval": "checkpoint"}


def groups() -> list[str]:
    """Returns the names of the groups that have something to choose."""
    return sorted(
        folder.name
        for folder in configs_dir().iterdir()
        if folder.name not in _NOT_CHOSEN and len(list(folder.rglob("*.yaml"))) > 1
    )


def lines(group: str) -> list[str]:
    """Returns a group's options as typed after `GROUP=`, sorted by name, with descriptions.

    Raises:
        UsageError: there is no such group, or nothing to choose in it.
    """
    if group not in groups():
        hint = did_you_mean(group, groups()) or f" ({', '.join(groups())})"
        raise UsageError(f"list {group}: there is no such group{hint}")
    options = dict(_options(configs_dir() / group))
    width = max(map(len, options))
    return [f"{name:<{width}}  {options[name]}".rstrip() for name in sorted(options)]


def completions(verb: str, word: str) -> list[str]:
    """Returns the completions of a word after `verb` that Hydra does not know.

    These are the groups after `list`, options in folders, and paths.
    """
    if verb == "list":
        return [name for name in groups() if name.startswith(word)]
    key, equals, begun = word.partition("=")
    if not equals:
        return []
    if key == _PATHS.get(verb):
        paths = sorted(glob.glob(f"{glob.escape(begun)}*"))
        return [f"{key}={path}{os.sep if os.path.isdir(path) else ''}" for path in paths]
    if verb == "eval" or key not in groups():
        return []
    names = sorted(name for name, _ in _options(configs_dir() / key))
    return [f"{key}={name}" for name in names if name.startswith(begun)]


def is_fixed(word: str) -> bool:
    """Returns True if `word` gives a key one value."""
    try:
        (override,) = parse_overrides([word])
    except UsageError:
        return False
    return not override.is_sweep_override()


def _options(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the description of each option below `folder`."""
    for path in folder.rglob("*.yaml"):
        yield path.relative_to(folder).with_suffix("").as_posix(), _description(path)


def _description(path: Path) -> str:
    """Returns the comment that a file begins with, without Hydra's directives; empty if none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        if not line.startswith("# @"):
            return line.removeprefix("#").strip()
    return ""
