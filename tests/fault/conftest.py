"""Starts runs, and checks after every test that none of them has left anything behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.processes import WORDS, Run
from tests.harness import Fingerprint

Train = Callable[..., Run]
# Of a run of some seconds: stopped or killed and resumed, it must come to the same end.
TOTAL_STEPS = 3840
TOTAL = f"total_steps={TOTAL_STEPS}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts a `Run` in the test's folder; at the end all of them must be gone without a trace."""
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
    """Starts `htsrl train` on something small."""
    return lambda *words: start("train", *WORDS, *words)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    """Of the small run when nothing happens to it."""
    run = Run(tmp_path_factory.mktemp("uninterrupted"), "train", *WORDS, TOTAL)
    assert run.wait() == 0, run.stderr
    assert not run.leftovers()
    return run.fingerprint()
