"""The pages of the documentation, and the commands on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
# Fences that hold no commands: code, data, and what programs print.
NO_COMMANDS = {"text", "python", "yaml", "json", "toml", "make", "diff", "ini"}
ERROR = "htsrl: error: "


def prose(path: Path) -> str:
    """Returns a page without its fences."""
    return re.sub(r"^( *)```.*?^\1```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def fenced_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the lines of fences that may hold commands, joined, each with the next line."""
    pattern = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
    for _, language, body in pattern.findall(path.read_text("utf-8")):
        if language not in NO_COMMANDS:
            yield from pairwise([*body.replace("\\\n", " ").splitlines(), ""])


def commands(path: Path, program: str) -> Iterator[tuple[str, str]]:
    """Yields the commands of a page that begin with a program, in fences or as whole code spans.

    Before it there may be a prompt, variables, and other commands with `&&`; after it a comment.
    With each comes the error that the page shows below it, if any.
    """
    start = re.compile(rf"(?:\$ )?(?:.*&& )?(?:[A-Z_]+=\S+ )*({program} .*)")
    for line, following in fenced_lines(path):
        if match := start.fullmatch(line.strip()):
            _, is_error, message = following.strip().partition(ERROR)
            yield match[1], message if is_error else ""
    # A span with a verb alone is a name.
    yield from ((c, "") for c in re.findall(rf"`({program} [^`\s]+ [^`]+)`", prose(path)))


def words_of(command: str) -> list[str]:
    """Returns a command's words up to a comment, a pipe or the next command."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;"):
            break
        words.append(word)
    return words
