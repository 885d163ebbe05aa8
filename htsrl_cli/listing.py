"""`htsrl list`: the options of the configuration groups, one on a line, with what they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from htsrl_cli.compose import configs_dir
from htsrl_cli.errors import UsageError
from htsrl_cli.schema import did_you_mean

# Parts that other files are made of, and Hydra's own.
_NOT_CHOSEN = ("base", "hydra")


def groups() -> list[str]:
    """Names of the groups that have something to choose."""
    return sorted(
        folder.name
        for folder in configs_dir().iterdir()
        if folder.name not in _NOT_CHOSEN and len(list(folder.rglob("*.yaml"))) > 1
    )


def lines(group: str) -> list[str]:
    """A group's options in order of name, as they are typed after `GROUP=`.

    Raises:
        UsageError: there is no such group, or nothing to choose in it.
    """
    if group not in groups():
        hint = did_you_mean(group, groups()) or f" ({', '.join(groups())})"
        raise UsageError(f"list {group}: there is no such group{hint}")
    options = dict(_options(configs_dir() / group))
    width = max(map(len, options))
    return [f"{name:<{width}}  {options[name]}".rstrip() for name in sorted(options)]


def completions(word: str) -> list[str]:
    """What `GROUP=` and the beginning of an option can become; options lie in folders, too."""
    group, equals, begun = word.partition("=")
    if not equals or group not in groups():
        return []
    names = sorted(name for name, _ in _options(configs_dir() / group))
    return [f"{group}={name}" for name in names if name.startswith(begun)]


def _options(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*.yaml"):
        yield path.relative_to(folder).with_suffix("").as_posix(), _description(path)


def _description(path: Path) -> str:
    """The comment that a file begins with, without Hydra's directives; empty where it has none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        if not line.startswith("# @"):
            return line.removeprefix("#").strip()
    return ""
