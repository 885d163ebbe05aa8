"""Check of docstrings: full sentences or noun phrases, never fragments.

    functions, methods            a third-person verb ("Returns ...")
    modules, classes, properties  a noun phrase ("Rollout of ...")

Tests and fixtures may start with any word. The first line of every docstring ends with a full stop.
Prints FILE:LINE and the problem for each violation; the exit code is 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("htsrl_cli", "scripts", "tests")
# "Seconds of ..." and the like are plural nouns.
VERB = re.compile(r"(?!(As|Has|Is|Its|This|Was)\b)[A-Z][a-z-]*s\b(?! of\b)")
# Words that begin a clause, and verbs that cannot be plural nouns.
NOT_A_NOUN = re.compile(
    r"(Are|As|At|By|Can|Does|For|From|Has|How|If|In|Is|Of|On|That|To|Was|What|When|Where|Whether"
    r"|Which|Who|Whose|Why|With|Builds|Chooses|Composes|Computes|Creates|Finds|Gives|Holds|Keeps"
    r"|Loads|Makes|Reads|Returns|Says|Tells|Turns|Writes|Yields)\b"
)
PROPERTIES = frozenset({"property", "cached_property", "setter"})

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def main() -> int:
    """Checks all files and prints the violations; returns the exit code."""
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, problem in fragments(path.read_text(encoding="utf-8"))
    ]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def fragments(source: str) -> list[tuple[int, str]]:
    """Returns the line number and the description of each violation, sorted by line number."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, Documented))
    return sorted(problem for node in nodes for problem in _problems(node))


def _problems(node: Documented) -> Iterator[tuple[int, str]]:
    docstring = ast.get_docstring(node)
    if docstring is None:
        return
    first, line = docstring.partition("\n")[0], node.body[0].lineno
    if not first.endswith("."):
        yield line, f"the first line does not end with a full stop: {first}"
    if isinstance(node, Function) and not _decorators(node) & PROPERTIES:
        is_free = node.name.startswith("test_") or "fixture" in _decorators(node)
        if not is_free and not VERB.match(first):
            yield line, f"a function must start with a third-person verb: {first}"
    elif NOT_A_NOUN.match(first):
        yield line, f"a module, class or property must start with a noun phrase: {first}"


def _decorators(node: Function) -> set[str]:
    """Returns the names of a function's decorators: for `@pytest.fixture`, this is `fixture`."""
    named = [entry.func if isinstance(entry, ast.Call) else entry for entry in node.decorator_list]
    return {ast.unparse(entry).rpartition(".")[2] for entry in named}


if __name__ == "__main__":
    sys.exit(main())
