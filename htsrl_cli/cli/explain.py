"""Explanation of Hydra's errors: the override that is wrong, and how to correct it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from htsrl_cli.config.wording import atari_game, closest, did_you_mean, shown, unknown_key
from htsrl_cli.errors import ConfigError, UsageError

# Errors that Hydra raises if it cannot compose a configuration.
REFUSALS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    AssertionError,
    AttributeError,
    TypeError,
    RecursionError,
)
# Sections of arguments for the user's code, which have no default values.
_ARGUMENTS = ("env.kwargs", "network.kwargs")
# Keys that hold the kind of a section.
_KINDS = ("kind", "name")
# An error message lists the options of a group if there are at most this many.
_FEW = 8
_FUNCTIONS = ("choice", "range", "interval", "tag", "int", "float", "sort", "shuffle", "glob")
_PLUGINS = (
    "hydra/sweeper/optuna",
    "hydra/launcher/joblib",
    "hydra/launcher/submitit_local",
    "hydra/launcher/submitit_slurm",
)


@dataclass(frozen=True)
class Explainer:
    """Translator of Hydra's errors into errors that name the wrong override.

    Attributes:
        group_options: function that returns the list of a group's options, which is empty for an
            unknown group.
        compose: function that composes a single job from overrides, or raises one of `REFUSALS`.
    """

    group_options: Callable[[str], list[str]]
    compose: Callable[[Sequence[str]], DictConfig]

    def explain(self, error: Exception, overrides: list[Override]) -> UsageError:
        """Looks for the override that caused `error`; returns the error to report."""
        if isinstance(error, MissingConfigException) and _is_plugin(error.missing_cfg_file):
            name = error.missing_cfg_file
            return UsageError(f"{name} is not installed: pip install 'htsrl[sweep]'")
        fixed = [override for override in overrides if not override.is_sweep_override()]
        for override in fixed:
            if problem := self._group_problem(override) or self._group_again(override):
                return problem
        groups = [o for o in fixed if self.group_options(o.key_or_group)]
        for override in fixed:
            if override not in groups and (problem := self._key_problem(override, groups)):
                return problem
        return UsageError(first_line(error))

    def kind_problem(self, override: Override, overrides: Sequence[Override]) -> ConfigError | None:
        """Returns an error if the override names an option by a section's kind (`algo.name=a2c`).

        The section would keep the keys of the option that is chosen.

        Args:
            overrides: all overrides of the command.
        """
        key, value = override.key_or_group, str(override.value())
        group, _, tag = key.rpartition(".")
        options = self.group_options(group) if tag in _KINDS else []
        if value in options:
            remedy = f"write it as {group}={value}"
        elif _inside(value, options):
            remedy = f"write it as {group}={value}/NAME; all names: htsrl list {group}"
        else:
            return None
        others = [other.input_line or "" for other in overrides if other is not override]
        is_changed = self.compose(others)[group][tag] != value
        return ConfigError(key, value, remedy) if is_changed else None

    def _group_problem(self, override: Override) -> ConfigError | None:
        """Returns an error if the option is unknown or the group is nested (`env/atari=pong`)."""
        group, value = override.key_or_group, override.value()
        options = self.group_options(group)
        if not options or override.is_delete() or isinstance(value, dict):
            return None
        if value in options:
            top, nested, folder = group.partition("/")
            if not nested or top == "hydra":
                return None
            return ConfigError(group, shown(value), f"write it as {top}={folder}/{value}")
        if group == "env" and (words := _as_environment(str(value), options)):
            return ConfigError(group, shown(value), f"write it as {words}")
        hint = _option_hint(str(value), group, options)
        return ConfigError(group, shown(value), f"{group} has no such option{hint}")

    def _group_again(self, override: Override) -> ConfigError | None:
        """Returns an error if the override adds (`+`) a group that the defaults list contains."""
        plus, group, value = _plus(override), override.key_or_group, override.value()
        if not plus or isinstance(value, dict):
            return None
        if group not in self.compose([]).hydra.runtime.choices:
            return None
        return ConfigError(group, shown(value), f"write it without the {plus}")

    def _key_problem(self, override: Override, groups: list[Override]) -> ConfigError | None:
        """Returns an error if the override has an unknown key, or a value that Hydra refuses.

        Args:
            groups: the overrides that choose an option of a group.
        """
        words = [group.input_line or "" for group in groups]
        try:
            base = self.compose(words)
        except REFUSALS:
            return None
        key, value = override.key_or_group, shown(override.value())
        known = key_names(base)
        if key not in known and not (override.is_add() or override.is_force_add()):
            remedy = separate_arguments(key, override.value())
            if key.startswith(tuple(f"{name}." for name in _ARGUMENTS)):
                remedy = f"to add a new argument, write +{key}={value}"
            if key == "env.id":
                remedy = f"for a Gymnasium environment, write env=gym {key}={value}"
            if remedy:
                return ConfigError(key, value, remedy)
            return unknown_key(key, value, known if key.startswith("hydra") else own_keys(base))
        try:
            self.compose([*words, override.input_line or ""])
        except REFUSALS as error:
            if override.is_add() and key in known:
                return ConfigError(key, value, "write it without the +")
            remedy = separate_arguments(key, override.value())
            return ConfigError(key, value, remedy or _cause(error))
        return None


def _option_hint(value: str, group: str, options: Sequence[str]) -> str:
    """Returns the option that is closest to `value`, or some options.

    If `value` is a folder of options, these are the first in it, else the first in no folder.
    """
    inside = _inside(value, options)
    if not inside and (hint := did_you_mean(value, options)):
        return hint
    names = (inside or [option for option in options if "/" not in option] or options)[:_FEW]
    more = f"; all: htsrl list {group}" if len(names) < len(options) else ""
    return f" ({', '.join(names)}{more})"


def _inside(folder: str, options: Sequence[str]) -> list[str]:
    """Returns the options in a folder of options."""
    return [option for option in options if option.startswith(f"{folder}/")]


def separate_arguments(key: str, value: object = None) -> str:
    """Returns the remedy for arguments that were typed as one value; empty for other keys.

    Args:
        key: name of the key, perhaps with a `+`.
        value: the arguments, if the value could be parsed as a dictionary.
    """
    key = key.lstrip("+")
    if key not in _ARGUMENTS:
        return ""
    named = value if isinstance(value, dict) and value else {"NAME": "VALUE"}
    words = " ".join(f"+{key}.{name}={shown(entry)}" for name, entry in named.items())
    return f"write each argument on its own: {words}"


def _plus(override: Override) -> str:
    """Returns the `+` or `++` of an override that adds a key, else an empty string."""
    if override.is_force_add():
        return "++"
    return "+" if override.is_add() else ""


def _as_environment(name: str, options: Sequence[str]) -> str | None:
    """Returns the overrides that choose the Gymnasium id `name`; None if it does not look like one.

    Args:
        options: the options of the group `env`.
    """
    if not re.fullmatch(r"[\w.:/-]+-v\d+", name):
        return None
    game = f"atari/{atari_game(name)}"
    return f"env={game}" if game in options else f"env=gym env.id={name}"


def flag_as_override(flag: str, following: str, known: Sequence[str]) -> str | None:
    """Returns the override that a user means by an unknown flag; None if no key is close.

    Args:
        flag: a flag such as `--seed` or `--total-steps=1000`.
        following: the word after the flag; empty if there is none.
        known: names of all keys.
    """
    name, equals, value = flag.removeprefix("--").partition("=")
    key = closest(name.replace("-", "_"), known)
    if key is None:
        return None
    is_value = following and "=" not in following and not following.startswith("--")
    return f"{key}={value if equals else following if is_value else 'VALUE'}"


def _cause(error: Exception) -> str:
    """Returns the remedy for a value that Hydra refuses with `error`."""
    if isinstance(error, AttributeError):
        return "null cannot be given keys on the command line: use a YAML file"
    return first_line(error.__cause__ or error)


def unparsable(error: HydraException) -> str:
    """Returns the remedy for an override that Hydra cannot parse."""
    name = re.search(r"Unknown function '(\w+)'", str(error))
    if name:
        hint = did_you_mean(name[1], _FUNCTIONS) or f" ({', '.join(_FUNCTIONS)})"
        return f"there is no function {name[1]}{hint}; quote a value that is no function"
    call = re.search(r"while evaluating '\w+\(.*?\)': (.+)", str(error))
    if call:
        return f"{call[1]}: write interval(A, B), range(A, B) or choice(A, B, ...)"
    return "cannot be parsed; quote special characters, as in \"key='a b'\""


def first_line(error: BaseException) -> str:
    """Returns the first nonblank line of an error's message, or `repr(error)` if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _is_plugin(name: str | None) -> bool:
    """Returns True if `name` is a YAML file of an optional Hydra plugin."""
    return name in _PLUGINS


def key_names(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Returns the dotted names of all keys and sections of a configuration."""
    names = []
    for key, value in cfg.items_ex(resolve=False):
        names.append(f"{prefix}{key!s}")
        if isinstance(value, DictConfig) and not (value._is_missing() or value._is_none()):
            names += key_names(value, f"{prefix}{key!s}.")
    return names


def own_keys(cfg: DictConfig) -> list[str]:
    """Returns the names of htsrl's keys and sections, and of the folder of a run."""
    own = [name for name in key_names(cfg) if not name.startswith("hydra.")]
    return [*own, "hydra.run.dir"]
