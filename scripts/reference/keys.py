"""The generated parts of docs/reference/keys.md: every configuration key, by section.

Types and texts come from the dataclasses, ranges from their rules, defaults from the YAML files.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from htsrl_cli import plugins
from htsrl_cli.cli.files import configs_dir
from htsrl_cli.cli.listing import options
from htsrl_cli.config import kinds, sections
from htsrl_cli.config.auto import AUTO, CHOICES
from htsrl_cli.config.identity import changes_no_result
from htsrl_cli.config.rules import DEVICE
from scripts.reference.markdown import (
    anchored,
    attributes,
    sentence,
    summary,
    table,
    typed,
)

# The sections that choose a kind, and the base class of each section's kinds.
BASES: Mapping[str, type] = {
    "env": kinds.EnvConfig,
    "algo": kinds.AlgoConfig,
    "network": kinds.NetworkConfig,
}
# The other sections of `htsrl train`, and the YAML file that holds each.
FILES: Mapping[str, str] = {
    "actors": "actors/default",
    "learner": "learner/default",
    "runner": "runner/hts",
    "checkpoint": "base/run",
    "log": "base/run",
    "eval": "base/run",
}
_SCHEMAS: Mapping[str, type] = get_type_hints(sections.TrainConfig)
_OF_A_RUN = {_SCHEMAS[section] for section in (*BASES, *FILES)}
# Keys that name a kind.
_TAGS = {tag for tag, _ in plugins.SECTIONS.values()}
# Groups with options to choose from, except `env`.
GROUPS = (
    "algo",
    "network",
    "runner",
    "experiment",
    "tuned",
    "debug",
    "hparams_search",
    "sweeper",
    "launcher",
)
_TYPES = {int: "integer", float: "number", bool: "`true` or `false`", str: "text"}
# Longer lists of choices or defaults are not shown.
_MOST_CHOICES = 6
_MOST_DEFAULTS = 3


class Key(NamedTuple):
    """A configuration key.

    Attributes:
        name: the key as it is typed, including its section.
        schema, field: the dataclass that has the key as a field, and the name of this field.
        defaults: the key's default values, by option, or by kind if all kinds of the section have
            the key; a single value under "" if there are no options.
        prefix: prefix of the key's anchor, needed where several keys share a name.
    """

    name: str
    schema: type
    field: str
    defaults: Mapping[str, object]
    prefix: str = ""


# Lists of keys.


def general_keys() -> list[Key]:
    """Returns the keys of `htsrl train` that belong to no section."""
    plain = [field for field in fields(sections.TrainConfig) if field not in {*BASES, *FILES}]
    values = options_values("base/run")
    return [Key(field, sections.TrainConfig, field, {"": values[field]}) for field in plain]


def section_keys(section: str) -> list[Key]:
    """Returns the keys of a section other than `env`, `algo` and `network`."""
    schema, values = _SCHEMAS[section], options_values(FILES[section])
    values = values.get(section, values)
    return [Key(f"{section}.{f}", schema, f, {"": values[f]}) for f in fields(schema)]


def async_keys() -> list[Key]:
    """Returns the keys that only `runner=async` has."""
    schema, values = sections.AsyncRunnerConfig, options_values("runner/async")
    own = [field for field in fields(schema) if field not in fields(sections.RunnerConfig)]
    return [Key(f"runner.{f}", schema, f, {"": values[f]}) for f in own]


def common_keys(section: str) -> list[Key]:
    """Returns the keys that all kinds of a section have."""
    base = BASES[section]
    defaults = {kind: options_of(section, kind) for kind in own_kinds(section)}
    return [
        Key(
            f"{section}.{field}",
            base,
            field,
            {
                kind: values[field]
                for kind, options in defaults.items()
                for values in options.values()
            },
        )
        for field in fields(base)
    ]


def kind_keys(section: str, kind: str) -> list[Key]:
    """Returns the keys of a kind, without the keys that all kinds of its section have."""
    schema = own_kinds(section)[kind]
    own = [field for field in fields(schema) if field not in fields(BASES[section])]
    options = options_of(section, kind)
    names = Counter(field for other in own_kinds(section).values() for field in fields(other))
    return [
        Key(
            f"{section}.{field}",
            schema,
            field,
            {name.rpartition("/")[2]: values[field] for name, values in options.items()},
            prefix=f"{kind}-" if names[field] > 1 else "",
        )
        for field in own
    ]


def own_network_keys() -> list[Key]:
    """Returns the keys of a user-defined network, with the defaults of their dataclass."""
    schema = kinds.OwnNetworkConfig
    defaults = vars(schema("module:name"))
    own = [field for field in fields(schema) if field not in fields(kinds.NetworkConfig)]
    shared = {field for other in own_kinds("network").values() for field in fields(other)}
    return [
        Key(f"network.{f}", schema, f, {"": defaults[f]}, prefix="own-" if f in shared else "")
        for f in own
    ]


def verb_keys(schema: type, file: str, section: str = "") -> list[Key]:
    """Returns the keys in a verb's YAML file; if `section` is given, only the section's keys."""
    values = options_values(file)
    values = values[section] if section else values
    if section:
        return [Key(f"{section}.{f}", schema, f, {"": values[f]}) for f in fields(schema)]
    return [Key(f, schema, f, {"": values[f]}, prefix=f"{file}-") for f in fields(schema)]


@cache
def own_kinds(section: str) -> dict[str, type]:
    """Returns the dataclasses of a section's kinds, by kind, without those of other packages."""
    found = {name: plugins.find(section, name).config for name in plugins.names(section)}
    return {n: schema for n, schema in found.items() if schema.__module__.startswith("htsrl_cli.")}


def fields(schema: type) -> list[str]:
    """Returns the names of a dataclass's fields, in order."""
    return [field.name for field in dataclasses.fields(schema)]


# The defaults in the YAML files.


@cache
def options_of(section: str, kind: str) -> dict[str, dict[str, Any]]:
    """Returns the values in the YAML files of all options that choose this kind, by option."""
    tag, _ = plugins.SECTIONS[section]
    files = sorted((configs_dir() / section).rglob("*.yaml"))
    names = [file.relative_to(configs_dir()).with_suffix("").as_posix() for file in files]
    found = {name.removeprefix(f"{section}/"): options_values(name) for name in names}
    return {name: values for name, values in found.items() if values[tag] == kind}


@cache
def options_values(name: str) -> dict[str, Any]:
    """Returns a YAML file's values, including those from the file it extends (`/base/...@_here_`).

    Its own values replace those of the file that it extends.
    """
    plain = OmegaConf.to_container(OmegaConf.load(configs_dir() / f"{name}.yaml"))
    assert isinstance(plain, dict)
    values: dict[str, Any] = {}
    for entry in plain.pop("defaults", []):
        if isinstance(entry, str) and entry.endswith("@_here_"):
            values |= options_values(entry.removesuffix("@_here_").removeprefix("/"))
    return values | {str(key): value for key, value in plain.items()}


# The tables.


def key_table(keys: Sequence[Key]) -> str:
    """Returns a table of the given keys."""
    rows = [
        [
            anchored(key.name, key.prefix),
            default(key),
            f"{meaning(key)}<br><small>{sentence(values_of(key))}{_effect(key)}</small>",
        ]
        for key in keys
    ]
    return table(["Key", "Default", "Meaning and values"], rows)


def values_of(key: Key) -> str:
    """Returns a description of the values that a key takes: their type and range."""
    rule = getattr(key.schema, "rules", {}).get(key.field)
    if rule is DEVICE:
        return "`auto`, `cpu` or `cuda:N`"
    more = [f"`{AUTO}`"] if tuple(key.name.split(".")) in CHOICES else []
    if rule is not None and rule.choices:
        choices = [f"`{choice}`" for choice in rule.choices] + more
        is_long = len(choices) > _MOST_CHOICES
        return f"one of {len(choices)} names" if is_long else _any_of(choices)
    hint = get_type_hints(key.schema)[key.field]
    arguments = [argument for argument in get_args(hint) if argument is not types.NoneType]
    if types.NoneType in get_args(hint):
        (hint,) = arguments
        more = ["`null`"]
    text = f"list of {_TYPES[arguments[0]]}s" if get_origin(hint) is tuple else _type(hint)
    if rule is not None:
        # Remedies are, for example:
        # "must be null, or 1 or more", "must not be empty", "must be finite and greater than 0"
        demand = re.sub("^must (not )?be (null, or |finite and )?", r"\1", rule.remedy)
        text = demand if demand.startswith("a list") else f"{text}, {demand}"
    return (" or " if "," not in text else "; or ").join([text, *more])


def default(key: Key) -> str:
    """Returns the text of a key's default.

    If the options have different defaults, the text lists them, or is "set by the option" if they
    are too many or if the key names a kind.
    """
    options: dict[str, list[str]] = {}
    for option, value in key.defaults.items():
        options.setdefault(typed(value), []).append(option)
    if len(options) == 1:
        return next(iter(options))
    if len(options) > _MOST_DEFAULTS or key.field in _TAGS:
        return "set by the option"
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in options.items())


def meaning(key: Key) -> str:
    """Returns the description of a key, taken from its dataclass's docstring.

    Raises:
        LookupError: the docstring does not describe the key.
    """
    texts = attributes(key.schema)
    if key.field not in texts:
        raise LookupError(f"the docstring of {key.schema.__name__} does not describe {key.field}")
    return sentence(texts[key.field])


def _effect(key: Key) -> str:
    is_harmless = key.schema in _OF_A_RUN and changes_no_result(key.name)
    return " Changes no result." if is_harmless else ""


def _type(hint: Any) -> str:
    return "keys and values" if get_origin(hint) is dict else _TYPES[hint]


def _any_of(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


# The regions of the page.


def kinds_text(section: str) -> str:
    """Returns a table of the kinds' common keys, then a heading and a table for each kind."""
    parts = [key_table(common_keys(section))]
    for kind, schema in own_kinds(section).items():
        keys = kind_keys(section, kind)
        parts += [f"### `{_choice(section, kind)}`", summary(schema)]
        parts.append(key_table(keys) if keys else "No keys of its own.")
    if section == "network":
        parts += ["### `network.name=module:name`", "A network of your own."]
        parts.append(key_table(own_network_keys()))
    return "\n\n".join(parts)


def options_text() -> str:
    """Returns a table of the options of `GROUPS`, with the comment at the top of each YAML file."""
    rows = [
        [f"`{group}={option}`", meaning]
        for group in GROUPS
        for option, meaning in options(group).items()
    ]
    return table(["Option", "Meaning"], rows)


def environments_text() -> str:
    """Returns a Markdown list of the options of `env`, with one item for each kind."""
    parts = []
    for kind in own_kinds("env"):
        names = ", ".join(f"`{name}`" for name in options_of("env", kind))
        parts.append(f"- `{kind}`: {names}")
    return "\n".join(parts)


def _choice(section: str, kind: str) -> str:
    """Returns the override that chooses a kind on the command line."""
    tag, _ = plugins.SECTIONS[section]
    options = list(options_of(section, kind))
    if len(options) == 1:
        return f"{section}={options[0]}"
    label = getattr(own_kinds(section)[kind], "label_key", tag)
    return f"{section}={options[0].partition('/')[0]}/<{label}>"


def section_text(section: str) -> str:
    """Returns the table of the keys of a section that chooses no kind."""
    return key_table(section_keys(section))


REGIONS: Mapping[str, Callable[[], str]] = {
    "general": lambda: key_table(general_keys()),
    **{section: partial(kinds_text, section) for section in BASES},
    **{section: partial(section_text, section) for section in FILES},
    "runner-async": lambda: key_table(async_keys()),
    "options": options_text,
    "environments": environments_text,
    "verb-eval": lambda: key_table(verb_keys(sections.EvalConfig, "eval")),
    "verb-bench": lambda: key_table(verb_keys(sections.BenchConfig, "bench", "bench")),
}
