"""Lists of the options of configuration groups, for `htsrl list` and tab completion."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from htsrl_cli.cli.compose import parse_overrides
from htsrl_cli.cli.files import GLOBAL, check_syntax, configs_dir
from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.errors import ConfigError, UsageError
from htsrl_cli.plugins import config_folders

# Groups that users do not choose from: building blocks of other YAML files, and Hydra's groups.
_NOT_CHOSEN = ("base", "hydra")
# Optional groups: even with a single option, users choose whether to use it.
_SINGLE = ("debug", "hparams_search", "sweeper")
# For each verb, the key whose value is a run folder or a checkpoint file.
_PATHS = {"train": "resume", "eval": "checkpoint"}


def groups(config_dir: str | None = None) -> list[str]:
    """Returns the sorted names of the groups from which a user can choose an option.

    Args:
        config_dir: the user's additional folder of YAML files (`--config-dir`).

    Raises:
        ConfigError: `config_dir` does not exist.
    """
    found: dict[str, int] = {}
    for folder in _folders(config_dir):
        for group in sorted(path for path in folder.iterdir() if path.is_dir()):
            found[group.name] = found.get(group.name, 0) + len(list(group.rglob("*.yaml")))
    chosen = {name for name, count in found.items() if count > 1 or name in _SINGLE}
    return sorted(chosen - set(_NOT_CHOSEN))


def lines(group: str, config_dir: str | None = None) -> list[str]:
    """Returns a line for each option of a group, with the option's name and description, sorted.

    Raises:
        UsageError: the group does not exist, or a user cannot choose from it.
    """
    known = groups(config_dir)
    if group not in known:
        hint = did_you_mean(group, known) or f" ({', '.join(known)})"
        raise UsageError(f"list {group}: there is no such group{hint}")
    found = options(group, config_dir)
    width = max(map(len, found))
    return [f"{name:<{width}}  {text}".rstrip() for name, text in found.items()]


def options(group: str, config_dir: str | None = None) -> dict[str, str]:
    """Returns a dict from the sorted names of a group's options to their descriptions.

    Raises:
        UsageError: a file that is not htsrl's own is malformed.
    """
    found = {name: description(path) for name, path in _files(group, config_dir).items()}
    return dict(sorted(found.items()))


def find(group: str, option: str, config_dir: str | None = None) -> Path:
    """Returns the YAML file of an option, which must exist."""
    paths = (folder / group / f"{option}.yaml" for folder in _folders(config_dir))
    return next(path for path in paths if path.exists())


def completions(verb: str, word: str, config_dir: str | None = None) -> list[str]:
    """Returns the completions of `word` after `verb` that Hydra does not offer.

    These are the groups after `list`, a group's options with their folders (`env=atari/pong`), and
    the paths after `resume=` and `checkpoint=`.
    """
    if verb == "list":
        return [name for name in groups(config_dir) if name.startswith(word)]
    key, equals, begun = word.partition("=")
    if not equals:
        return []
    if key == _PATHS.get(verb):
        paths = sorted(glob.glob(f"{glob.escape(begun)}*"))
        return [f"{key}={path}{os.sep if os.path.isdir(path) else ''}" for path in paths]
    if verb == "eval" or key not in groups(config_dir):
        return []
    names = sorted(_files(key, config_dir))
    return [f"{key}={name}" for name in names if name.startswith(begun)]


def is_fixed(word: str) -> bool:
    """Returns True if `word` is an override with one value, and not a sweep such as `seed=1,2`."""
    try:
        (override,) = parse_overrides([word])
    except UsageError:
        return False
    return not override.is_sweep_override()


def _files(group: str, config_dir: str | None) -> dict[str, Path]:
    """Returns a dict from the names of a group's options to their files, in no order."""
    found: dict[str, Path] = {}
    for folder in _folders(config_dir):
        for path in (folder / group).rglob("*.yaml"):
            found.setdefault(path.relative_to(folder / group).with_suffix("").as_posix(), path)
    return found


def _folders(config_dir: str | None) -> list[Path]:
    """Returns all folders of YAML files: first `config_dir`, then htsrl's, then other packages'."""
    if config_dir is None:
        return [configs_dir(), *config_folders()]
    if not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", config_dir, "there is no such folder")
    return [Path(config_dir), configs_dir(), *config_folders()]


def description(path: Path) -> str:
    """Returns an option's description: the first line of the comment at the top of its YAML file.

    Hydra's directives (`# @package ...`) are skipped. The description is empty if the file does not
    begin with a comment.

    Raises:
        UsageError: the file is not htsrl's own, and is malformed.
    """
    if not path.is_relative_to(configs_dir()):
        check_syntax(path)
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        if not line.startswith("# @"):
            return line.removeprefix("#").strip()
    return ""


def comments(name: str, config_dir: str | None = None) -> dict[str, str]:
    """Returns the comments beside the keys of a YAML file, by dotted key as on the command line.

    The files that it extends (`/base/...@_here_`) are included.

    Args:
        name: the file's name without `.yaml`, with its group; the result is empty if there is no
            such file.
        config_dir: the user's additional folder of YAML files (`--config-dir`).
    """
    path = next((p for f in _folders(config_dir) if (p := f / f"{name}.yaml").is_file()), None)
    if path is None:
        return {}
    group, _, _ = name.rpartition("/")
    text = path.read_text(encoding="utf-8")
    is_global = not group or f"{GLOBAL}\n" in text
    return _comments(text, "" if is_global else f"{group.partition('/')[0]}.")


def _comments(text: str, prefix: str) -> dict[str, str]:
    """Returns the comments beside keys in the text of a YAML file, and of the files it extends."""
    found: dict[str, str] = {}
    sections: list[tuple[int, str]] = []
    for line in text.splitlines():
        if extended := re.match(r" *- /?(base/\S+)@_here_$", line):
            base = (configs_dir() / f"{extended[1]}.yaml").read_text(encoding="utf-8")
            found |= _comments(base, prefix)
        elif key := re.match(r"( *)(\w+):(?:.*?\s# (.*))?", line):
            indent = len(key[1])
            sections = [(depth, name) for depth, name in sections if depth < indent]
            sections.append((indent, key[2]))
            if key[3]:
                found[prefix + ".".join(name for _, name in sections)] = key[3]
    return found
