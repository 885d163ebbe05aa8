"""Wording of configuration errors: values as a user types them, and suggestions for names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches

from htsrl_cli.errors import ConfigError

# Minimum similarity (0 to 1) of the last parts of two names; `dir` and `dri` have 0.67.
_ALIKE = 0.65
# Maximum number of characters of a value that an error message repeats.
_LONGEST = 80


def shown(value: object) -> str:
    """Returns `value` as a user types it on the command line; a long value is truncated."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def kind_of(value: object) -> str:
    """Returns the words with which an error message describes the type of `value`."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "an integer",
        float: "a decimal number",
        str: "text",
        list: "a list",
    }
    return names.get(type(value), "a section")


def unknown_key(key: str, value: object, known: list[str]) -> ConfigError:
    """Returns the error for an unknown key; the message suggests a similar key, if any."""
    return ConfigError(key, shown(value), f"no such key{did_you_mean(key, known)}")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Returns ` (did you mean ...?)` with the name in `known` closest to `word`, if any is close.

    Otherwise, returns an empty string. Names have parts (`algo.gamma`, `atari/pong`). A name is
    close only if its last part is similar to the last part of `word`. A key without its section is
    therefore found, but two names are not close merely because they share a folder.
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
