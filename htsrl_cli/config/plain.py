"""Conversion of configurations between dataclasses and plain dicts, lists and scalars.

Checkpoints and run folders store the result of `to_plain`. Executors import this module, so it
imports neither torch nor hydra nor omegaconf.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from htsrl_cli import plugins
from htsrl_cli.config.kinds import OwnNetworkConfig
from htsrl_cli.config.wording import did_you_mean, kind_of, shown, unknown_key
from htsrl_cli.errors import ConfigError

_ConfigT = TypeVar("_ConfigT")


def to_plain(config: Any) -> dict[str, Any]:
    """Converts a configuration to nested dicts, lists and scalars for JSON and YAML."""
    plain: dict[str, Any] = _unfreeze(dataclasses.asdict(config))
    return plain


def build(schema: type[_ConfigT], plain: Mapping[str, Any], prefix: str = "") -> _ConfigT:
    """Builds an instance of the dataclass `schema` from plain values.

    Types are strict: `"1"` is not a number, and `true` is not 1. However, a whole float (1e7) is
    accepted as an integer. A key may be missing only if its field has a default.

    Args:
        prefix: prefix of the keys' names in error messages, for example `bench.`.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    values = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if key not in fields:
            raise unknown_key(name, value, [f"{prefix}{known}" for known in fields])
        values[key] = _convert(name, value, hints[key])
    for key, field in fields.items():
        if key not in values and not _has_default(field):
            name = f"{prefix}{key}"
            raise ConfigError(name, "null", f"a value is needed: {name}=...")
    return schema(**values)


def build_section(key: str, section: Mapping[str, Any]) -> Any:
    """Builds the section `key` (`env`, `algo` or `network`) as an instance of its kind's dataclass.

    Raises:
        ConfigError: the kind does not exist, a key is unknown or missing, or a value has the wrong
            type.
    """
    tag, _ = plugins.SECTIONS[key]
    name = section.get(tag)
    schema = find_kind(key, name).config
    known = [field.name for field in dataclasses.fields(schema)]
    for unknown in section.keys() - set(known):
        remedy = f"no such key with {key}.{tag}={name}{did_you_mean(unknown, known)}"
        raise ConfigError(f"{key}.{unknown}", shown(section[unknown]), remedy)
    return build(schema, section, f"{key}.")


def flatten(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and values of nested dicts; an empty dict counts as a value."""
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Builds nested dicts from dotted keys and their values; the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return nested


def find_kind(section: str, name: object) -> plugins.Kind:
    """Returns the kind called `name` of the section `section` (`env`, `algo` or `network`).

    The name of a user-defined network is `module:name`; the module is not imported here.

    Raises:
        ConfigError: there is no kind of this name, or its package cannot be imported.
    """
    tag, _ = plugins.SECTIONS[section]
    key = f"{section}.{tag}"
    known = plugins.names(section)
    if section == "network" and isinstance(name, str) and ":" in name:
        return plugins.Kind(OwnNetworkConfig, name)
    if name not in known:
        remedy = f"must be one of {', '.join(known)}{did_you_mean(str(name), known)}"
        raise ConfigError(key, shown(name), remedy)
    try:
        return plugins.find(section, str(name))
    except ImportError as error:
        raise ConfigError(key, shown(name), f"its package cannot be imported: {error}") from error


def _unfreeze(value: Any) -> Any:
    """Returns a copy of `value` with lists in place of tuples, at any depth."""
    if isinstance(value, dict):
        return {key: _unfreeze(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_unfreeze(entry) for entry in value]
    return value


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _convert(key: str, value: Any, hint: Any) -> Any:
    """Converts plain `value` to the type `hint`; raises `ConfigError` if it does not fit."""
    if key in plugins.SECTIONS:
        return build_section(key, _section(key, value))
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in get_args(hint) if arg is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        section = _section(key, value)
        # The keys of some sections depend on a value in the section.
        schema = hint.schema(section) if hasattr(hint, "schema") else hint
        return build(schema, section, f"{key}.")
    if get_origin(hint) is tuple:
        return _convert_list(key, value, get_args(hint)[0])
    if get_origin(hint) is dict:
        return dict(_section(key, value))
    return _convert_scalar(key, value, hint)


def _section(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        # Arguments for the user's code have no default values to replace.
        plus = "+" if key.endswith(".kwargs") else ""
        remedy = f"must hold keys and values: set {plus}{key}.KEY=VALUE"
        raise ConfigError(key, shown(value), remedy)
    return value


def _convert_list(key: str, value: Any, hint: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(key, shown(value), f"must be a list: '{key}=[A,B]'")
    return tuple(_convert_scalar(key, entry, hint) for entry in value)


def _convert_scalar(key: str, value: Any, hint: type) -> Any:
    """Converts a scalar; accepts a whole float (1e7) as an integer, and an integer as a float."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(key, shown(value)[:40], "is too large for a number") from error
    if hint is int and type(value) is int:
        return value
    if hint is int and number and math.isfinite(value) and int(value) == value:
        return int(value)
    if hint not in (int, float) and type(value) is hint:
        return value
    needed = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[hint]
    raise ConfigError(key, shown(value), f"must be {needed}, not {kind_of(value)}")
