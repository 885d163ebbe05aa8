"""Markdown for generated pages: tables, values as users type them, docstrings' attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

# The first line of an attribute: one or several names, then the text.
_ATTRIBUTE = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)")
# Words that stay in lower case at the beginning of a sentence.
_DTYPE = re.compile(r"(bool|u?int\d+|float\d+)\b")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def anchored(name: str, prefix: str = "") -> str:
    """Returns a name as code, with an anchor for links to `page.md#<prefix><name>`."""
    return f'<a id="{prefix}{name}"></a>`{name}`'


def typed(value: object) -> str:
    """Returns a value as it is typed on the command line, as Markdown code.

    For a key without a default (the value "???"), it returns "required".
    """
    if value == "???":
        return "required"
    return f"`{_typed(value)}`"


def sentence(text: str) -> str:
    """Returns a docstring's phrase as a sentence: a capital first, a full stop at the end."""
    if not _DTYPE.match(text):
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", ":")) else f"{text}."


def attributes(schema: type) -> dict[str, str]:
    """Returns the text of each attribute in the docstrings of a class and its bases, by name."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        found |= _attributes(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return found


def summary(schema: type) -> str:
    """Returns the first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(schema) or "").partition("\n\n")[0].split())


def _attributes(doc: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, section = doc.partition("Attributes:\n")
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        match = _ATTRIBUTE.fullmatch(line.strip())
        if match and line.startswith("    ") and line[4:5] != " ":
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _typed(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:_}"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.15e}".partition("e")
        return f"{float(mantissa):.12g}e{int(exponent)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
