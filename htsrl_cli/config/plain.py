"""Configurations as plain values: to and from dataclasses, strictly typed, and their hash.

Checkpoints and run folders store what `to_plain` gives. Free of torch, hydra and omegaconf.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from htsrl_cli.config.sections import (
    A2cConfig,
    AtariConfig,
    FootballConfig,
    GymConfig,
    PpoConfig,
    SyntheticConfig,
    TrainConfig,
)
from htsrl_cli.errors import ConfigError

# Keys, and sections as a whole, that cannot change what a run computes. A resume may change
# them, and `config_sha256` leaves them out.
CHANGES_NO_RESULT = (
    "actors.host",
    "actors.num_actors",
    "actors.num_executors",
    "actors.timeout_s",
    "checkpoint",
    "env.step_timeout_s",
    "eval",
    "learner.num_threads",
    "log",
    "runner.stop_grace_s",
)

# Sections with several schemas: the key that tells them apart, and the schema for each value.
VARIANTS: dict[str, tuple[str, dict[str, type[Any]]]] = {
    "env": (
        "kind",
        {
            "atari": AtariConfig,
            "football": FootballConfig,
            "gym": GymConfig,
            "synthetic": SyntheticConfig,
        },
    ),
    "algo": ("name", {"ppo": PpoConfig, "a2c": A2cConfig}),
}

# Similarity of two words from which one may have been meant as the other: `dri`, `dir` have 0.67.
_ALIKE = 0.65
# So many characters of a value are repeated in an error.
_LONGEST = 80

_ConfigT = TypeVar("_ConfigT")


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration dataclass as dicts, lists and scalars that JSON and YAML can hold."""
    plain: dict[str, Any] = _unfreeze(dataclasses.asdict(config))
    return plain


def from_plain(plain: Mapping[str, Any]) -> TrainConfig:
    """The reverse of `to_plain`; keys that have a default may be absent.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    return build(TrainConfig, plain)


def build(schema: type[_ConfigT], plain: Mapping[str, Any], prefix: str = "") -> _ConfigT:
    """An instance of the dataclass `schema` from plain values; `prefix` starts its keys' names.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    hints = get_type_hints(schema)
    values = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise unknown_key(name, value, [f"{prefix}{known}" for known in hints])
        values[key] = _convert(name, value, hints[key])
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        if field.name not in values and not _has_default(field):
            name = f"{prefix}{field.name}"
            raise ConfigError(name, "null", f"a value is needed: {name}=...")
    return schema(**values)


def unknown_key(key: str, value: object, known: list[str]) -> ConfigError:
    """The error for a key that does not exist, with the closest one that does."""
    return ConfigError(key, shown(value), f"no such key{did_you_mean(key, known)}")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """` (did you mean ...?)` for the entry of `known` closest to `word`, or an empty string.

    Names have parts (`algo.gamma`, `atari/pong`). The last one alone is compared, too: a forgotten
    section is found, and a common folder makes no names alike.
    """
    last = _last_part(word)
    by_last_part = {_last_part(name): name for name in known}
    if last in by_last_part:
        return f" (did you mean {by_last_part[last]}?)"
    for name in get_close_matches(word, known):
        if SequenceMatcher(None, last, _last_part(name)).ratio() >= _ALIKE:
            return f" (did you mean {name}?)"
    for part in get_close_matches(last, list(by_last_part), n=1, cutoff=_ALIKE):
        return f" (did you mean {by_last_part[part]}?)"
    return ""


def _last_part(name: str) -> str:
    return re.split(r"[./]", name)[-1]


def shown(value: object) -> str:
    """`value` as one types it on the command line, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def flatten(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts; an empty dict counts as a value."""
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes_no_result(key: str) -> bool:
    """Whether the dotted `key` is in CHANGES_NO_RESULT, itself or its section."""
    return any(key == entry or key.startswith(f"{entry}.") for entry in CHANGES_NO_RESULT)


def equivalent(key: str, value: object) -> object:
    """`value`, or the one that gives the same results: `serial` is bit-identical to `hts`."""
    return "hts" if (key, value) == ("runner.name", "serial") else value


def config_sha256(config: TrainConfig) -> str:
    """Hash of the keys and values that can change a result, as hexadecimal digits."""
    values = {
        key: equivalent(key, value)
        for key, value in flatten(to_plain(config))
        if not changes_no_result(key)
    }
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _unfreeze(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    if isinstance(value, dict):
        return {key: _unfreeze(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_unfreeze(entry) for entry in value]
    return value


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _convert(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says, without guessing: `"1"` is no number, `true` no 1."""
    if key in VARIANTS:
        return _build_variant(key, value)
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in get_args(hint) if arg is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return build(_section_type(hint), _section(key, value), f"{key}.")
    if get_origin(hint) is tuple:
        return _convert_list(key, value, get_args(hint)[0])
    if get_origin(hint) is dict:
        return dict(_section(key, value))
    return _convert_scalar(key, value, hint)


def _section_type(hint: Any) -> type[Any]:
    assert isinstance(hint, type)
    return hint


def _section(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(key, shown(value), f"keys and values are needed: {key}.KEY=VALUE")
    return value


def _build_variant(key: str, value: Any) -> Any:
    tag, schemas = VARIANTS[key]
    section = _section(key, value)
    name = section.get(tag)
    if name not in schemas:
        choices = ", ".join(schemas)
        remedy = f"must be one of {choices}{did_you_mean(str(name), list(schemas))}"
        raise ConfigError(f"{key}.{tag}", shown(name), remedy)
    return build(schemas[name], section, f"{key}.")


def _convert_list(key: str, value: Any, hint: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(key, shown(value), f"must be a list: '{key}=[A,B]'")
    return tuple(_convert_scalar(key, entry, hint) for entry in value)


def _convert_scalar(key: str, value: Any, hint: type) -> Any:
    """Numbers that are integral may be written as floats (1e7) and the other way round."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and math.isfinite(value) and int(value) == value:
        return int(value)
    if hint not in (int, float) and type(value) is hint:
        return value
    needed = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[hint]
    raise ConfigError(key, shown(value), f"must be {needed}, not {_kind_of(value)}")


def _kind_of(value: object) -> str:
    """What a user would call the type of `value`."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "a section"}
    if value is None:
        return "null"
    return names.get(type(value), "such a number")
