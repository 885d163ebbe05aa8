"""Wording of configuration errors: values as typed, and suggestions for unknown names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches

from htsrl_cli.errors import ConfigError

# Least similarity of a suggestion to the unknown name; that of `dir` to `dri` is 0.67.
_ALIKE = 0.65
# Most characters of a value that an error message repeats.
_LONGEST = 80


def shown(value: object) -> str:
    """Returns `value` as typed on the command line, cut if it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def kind_of(value: object) -> str:
    """Returns a user's name for the type of `value`."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "a section"}
    if value is None:
        return "null"
    return names.get(type(value), "this number")


def unknown_key(key: str, value: object, known: list[str]) -> ConfigError:
    """Returns the error for a key that does not exist; it suggests a similar one, if any."""
    return ConfigError(key, shown(value), f"no such key{did_you_mean(key, known)}")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Returns ` (did you mean ...?)` with the closest name in `known`, or an empty string.

    Names have parts (`algo.gamma`, `atari/pong`). Last parts are also compared by themselves, so
    that a forgotten section is found and a common folder does not make names similar.
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
