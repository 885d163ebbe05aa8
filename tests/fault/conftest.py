"""Fixtures that start runs and check after every test that nothing of them is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.processes import WORDS, Run
from tests.harness import Fingerprint

Train = Callable[..., Run]
# The length of a run of some seconds; when stopped or killed and resumed, it must end the same.
TOTAL_STEPS = 3840
TOTAL = f"total_steps={TOTAL_STEPS}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Returns a function that starts a `Run` in the test's folder.

    At the end of the test all runs must have ended without leftovers.
    """
    runs: list[Run] = []

    def start(*words: str, command_line: list[str] | None = None) -> Run:
        runs.append(Run(tmp_path, *words, command_line=command_line))
        return runs[-1]

    yield start
    left = [thing for run in runs for thing in run.leftovers()]
    for run in runs:
        run.end()
    assert not left


@pytest.fixture
def train(start: Callable[..., Run]) -> Train:
    """Returns a function that starts a small `htsrl train`."""
    return lambda *words: start("train", *WORDS, *words)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    """Returns the fingerprint of the small run without interruptions."""
    run = Run(tmp_path_factory.mktemp("uninterrupted"), "train", *WORDS, TOTAL)
    assert run.wait() == 0, run.stderr
    assert not run.leftovers()
    return run.fingerprint()
