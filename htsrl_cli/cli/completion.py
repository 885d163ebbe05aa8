"""Tab completion: what the shell shows for the line typed so far."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from htsrl_cli.cli import listing

Task = TypeVar("Task")


def answer(
    words: list[str],
    verbs: Collection[str],
    tasks: Mapping[str, Task],
    run_verb: Callable[[str, list[str], Task], None],
) -> str:
    """Returns the completions of a command line; none if there is a mistake in the line.

    The environment variable COMP_LINE holds the line typed so far. Hydra completes most words
    after the verb, and prints these completions.

    Args:
        words: the words after `htsrl` with which the shell asks, for example `-sc query=bash`.
        verbs: all verbs.
        tasks: the tasks of the verbs that take a configuration.
        run_verb: function that starts Hydra with a verb, words and a task.
    """
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    verb, space, overrides = rest.lstrip().partition(" ")
    separator = "\n" if "query=fish" in words else " "
    if not (space and verb in verbs):
        return separator.join(name for name in verbs if name.startswith(verb))
    *before, last = overrides.split(" ")
    # An error at the prompt would be in the way.
    with suppress(Exception, SystemExit), redirect_stderr(io.StringIO()):
        found = listing.completions(verb, last, _config_dir(before))
        if found or verb not in tasks or last.startswith("-"):
            return separator.join(found)
        # Flags, sweeps and words that are not overrides would make Hydra fail.
        known = [word for word in before if listing.is_fixed(word)]
        os.environ["COMP_LINE"] = " ".join([program, *known, last])
        run_verb(verb, words, tasks[verb])
    return ""


def _config_dir(words: Sequence[str]) -> str | None:
    """Returns the folder that `--config-dir` names; None if there is no such flag or folder."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = value if equals else following
            return folder if Path(folder).is_dir() else None
    return None
