"""Checks of the YAML files of users and of other packages; errors name the file and the line."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.errors import ConfigError, UsageError

GLOBAL = "# @package _global_"
# Remedies for problems that the parser of YAML reports.
_REMEDIES = {
    "duplicate key": "delete one of the two lines",
    "another document": "delete the line ---",
    "constructor for the tag": "write a plain value",
    "undefined alias": "quote a value that begins with *",
}


def configs_dir() -> Path:
    """Returns htsrl's folder of YAML files, in the installed package or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


class CheckedRepository(ConfigRepository):
    """Hydra's repository of YAML files, which checks each file that is not htsrl's own."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Loads a YAML file; `config_path` is its name without `.yaml`, with its group.

        Raises:
            UsageError: the file is malformed.
        """
        if path := self.user_file(config_path):
            check_syntax(path)
            self._check_defaults(path, config_path)
        return super().load_config(config_path)

    def user_file(self, config_path: str) -> Path | None:
        """Returns the path of a YAML file; None for htsrl's and Hydra's own files."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() != "file" or Path(source.path) == configs_dir():
            return None
        return Path(source.path) / f"{config_path.removesuffix('.yaml')}.yaml"

    def located(self, error: ConfigError, choices: Mapping[str, Any]) -> UsageError:
        """Returns `error` with the place where a user's file sets the key, if one does.

        Args:
            error: the error of a composed configuration.
            choices: the chosen option of each group, and under "" the primary file.
        """
        for group, option in reversed(list(choices.items())):
            path = self.user_file(f"{group}/{option}".removeprefix("/"))
            if path is None:
                continue
            package = _package(path) or ("_global_" if not group else group.replace("/", "."))
            if package == error.key:
                remedy = f"write {GLOBAL} on the first line"
                return _problem(path, 1, f"the keys belong to a section {package}: {remedy}")
            prefix = "" if package == "_global_" else f"{package}."
            for name, line in _lines(path).items():
                if f"{prefix}{name}" in (error.key, f"hydra.sweeper.params.{error.key}"):
                    return ConfigError(
                        error.key, error.value, f"{error.remedy} ({path}, line {line})"
                    )
        return error

    def composing(self, error: Exception, chosen: Sequence[str]) -> UsageError | None:
        """Returns the error for a user's file that Hydra cannot merge; None if none is the cause.

        Args:
            error: the error of Hydra.
            chosen: names of the files that the command chose, with their groups.
        """
        text = str(error)
        if merged := re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)", text):
            path = self.user_file(merged[1])
            key = re.search(r"full_key: (\S+)", text)
            return _unmergeable(path, key[1] if key else "", merged[2]) if path else None
        refused = re.search(r"^Multiple values for ([^\s@]+)\.|Could not override '([^'@]+)", text)
        name = refused and (refused[1] or refused[2])
        for path in filter(None, map(self.user_file, chosen)):
            if isinstance(error, RecursionError):
                return _problem(path, 1, "the defaults list leads back to this file")
            for group, node in _defaults(path):
                if refused and group.split()[-1].lstrip("/") == name:
                    remedy = "choose it on the command line, because it comes after this file"
                    if refused[1]:
                        remedy = f"write override /{name}, because the command has an option"
                    return _problem(path, _line(node), f"defaults: {name}: {remedy}")
        return None

    def _check_defaults(self, path: Path, config_path: str) -> None:
        """Checks the defaults list of a file; raises `UsageError` for a wrong entry."""
        group = config_path.rpartition("/")[0]
        defaults = dict(_entries(_root(path))).get("defaults")
        if defaults is None:
            return
        if not isinstance(defaults, SequenceNode):
            raise _problem(path, _line(defaults), "defaults must be a list: write - GROUP: OPTION")
        for entry in defaults.value:
            if isinstance(entry, MappingNode) and len(entry.value) == 1:
                ((key, value),) = _entries(entry)
                if isinstance(value, ScalarNode):
                    self._check_option(path, group, key, value)
            elif isinstance(entry, ScalarNode) and entry.tag.endswith(":str"):
                self._check_name(path, config_path, entry)
            else:
                remedy = "write one GROUP: OPTION in each entry of defaults"
                raise _problem(path, _line(entry), remedy)

    def _check_name(self, path: Path, config_path: str, entry: ScalarNode) -> None:
        """Checks an entry of a defaults list that names a file."""
        name = str(entry.value).partition("@")[0]
        if name == "_self_" or "${" in name or name.startswith("optional "):
            return
        group = config_path.rpartition("/")[0]
        full = name[1:] if name.startswith("/") else f"{group}/{name}".removeprefix("/")
        if full == config_path:
            raise _problem(path, _line(entry), f"defaults: {name} is this file itself: delete it")
        if not self.config_exists(full):
            raise _problem(path, _line(entry), f"defaults: there is no file {full}.yaml")

    def _check_option(self, path: Path, group: str, key: str, value: ScalarNode) -> None:
        """Checks an entry of a defaults list that chooses an option of a group."""
        *keywords, chosen = key.split()
        name, option = chosen.partition("@")[0], str(value.value)
        if "optional" in keywords or "${" in name + option:
            return
        full = name[1:] if name.startswith("/") else f"{group}/{name}".removeprefix("/")
        if not self.group_exists(full):
            top = self.get_group_options("", ObjectType.GROUP)
            hint = f": write /{name}" if name in top else did_you_mean(name.lstrip("/"), top)
            raise _problem(path, _line(value), f"defaults: there is no group {full}{hint}")
        is_null = value.tag.endswith(":null") or option == "???"
        if not is_null and not self.config_exists(f"{full}/{option}"):
            hint = did_you_mean(option, self.get_group_options(full))
            remedy = f"defaults: {full} has no option {option}{hint}"
            raise _problem(path, _line(value), remedy)


def check_syntax(path: Path) -> None:
    """Checks that a YAML file can be read and holds keys and values.

    Raises:
        UsageError: it does not; the message names the file and the line.
    """
    text = _text(path)
    try:
        ConfigSource._get_header_dict(text)
    except ValueError as error:
        raise _problem(path, 1, f"{error}: write {GLOBAL}") from error
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None and not isinstance(root, MappingNode):
            kind = "a list" if isinstance(root, SequenceNode) else "text"
            raise _problem(path, _line(root), f"{kind} where keys are needed: write KEY: VALUE")
        values = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise _malformed(path, text, error) from error
    except OmegaConfBaseException as error:
        raise _problem(
            path, _line_of(path, error.full_key or ""), str(error).splitlines()[0]
        ) from error
    if not values:
        raise _problem(path, 1, "the file holds no keys: write KEY: VALUE, or delete it")
    for key, node in _entries(root):
        if not isinstance(next(k for k in values if str(k) == key), str):
            raise _problem(path, _line(node), f"{key} is no name of a key")


def _text(path: Path) -> str:
    """Returns the text of a file; raises `UsageError` if it is not plain UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    if data.startswith(codecs.BOM_UTF8):
        raise _problem(
            path, 1, "the file begins with a BOM (byte order mark): save it as UTF-8 without BOM"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"0x{data[error.start]:02x}"
        raise _problem(
            path, line, f"the byte {byte} is not UTF-8: save the file as UTF-8"
        ) from error


def _malformed(path: Path, text: str, error: yaml.YAMLError) -> UsageError:
    """Returns the error for text that is not YAML."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        return _problem(path, line, "a special character that YAML does not allow: delete it")
    problem = str(getattr(error, "problem", None) or "this is not YAML")
    lines = [*text.split("\n"), ""]
    indent = re.match(r"\s*", lines[mark.line])
    remedy = "correct the indentation, colons or quotes"
    if indent and "\t" in indent[0]:
        problem, remedy = "a tab indents this line", "indent with spaces"
    for words, better in _REMEDIES.items():
        remedy = better if words in problem else remedy
    return _problem(path, mark.line + 1, f"{problem}: {remedy}")


def _problem(path: Path, line: int, text: str) -> UsageError:
    return UsageError(f"{path}, line {line}: {text}")


def _package(path: Path) -> str | None:
    """Returns the package in a file's header: the section to which its keys belong."""
    return ConfigSource._get_header_dict(_text(path))["package"]


def _root(path: Path) -> Node | None:
    root: Node | None = yaml.compose(_text(path), yaml.SafeLoader)
    return root


def _entries(node: Node | None) -> Iterator[tuple[str, Node]]:
    """Yields the keys and values of a mapping."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield str(key.value), value


def _defaults(path: Path) -> Iterator[tuple[str, Node]]:
    """Yields the groups and options in the defaults list of a file."""
    defaults = dict(_entries(_root(path))).get("defaults")
    for entry in defaults.value if isinstance(defaults, SequenceNode) else ():
        yield from _entries(entry)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _unmergeable(path: Path, key: str, text: str) -> UsageError:
    """Returns the error for a file with a value that does not fit the values of other files."""
    if not key:
        for name, node in _entries(_root(path)):
            if name != "defaults" and isinstance(node, SequenceNode):
                remedy = f"{name} is a list, but must hold keys and values: write KEY: VALUE below"
                return _problem(path, _line(node), remedy)
    return _problem(path, _line_of(path, key), text)


def _line_of(path: Path, key: str) -> int:
    """Returns the line of a key, whose name may begin with the package of the file; else 1."""
    found = [line for name, line in _lines(path).items() if f".{key}".endswith(f".{name}")]
    return found[-1] if found else 1


def _lines(path: Path) -> dict[str, int]:
    """Returns the lines of all keys of a file, by dotted name."""
    found: dict[str, int] = {}

    def add(node: Node | None, prefix: str) -> None:
        if isinstance(node, MappingNode):
            for key, value in node.value:
                found[f"{prefix}{key.value}"] = _line(key)
                add(value, f"{prefix}{key.value}.")

    add(_root(path), "")
    return found
