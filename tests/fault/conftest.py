"""Fixtures that start runs and check after every test that nothing of them is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.processes import ASYNC_WORDS, WORDS, Run, without_leftovers
from tests.harness import Fingerprint

Train = Callable[..., Run]
_slow = pytest.mark.slow
# Marks of tests that other runners must pass, too; see `mode`. A replay of an asynchronous run ends
# like the recorded run, whatever happens to it. Without a schedule, no two asynchronous runs agree.
ALSO_ASYNC = pytest.mark.parametrize("mode", ["hts", "async"], indirect=True)
ALSO_ASYNC_SLOW = pytest.mark.parametrize(
    "mode", ["hts", pytest.param("async", marks=_slow)], indirect=True
)
ALSO_REPLAY = pytest.mark.parametrize("mode", ["hts", "replay"], indirect=True)
ALSO_REPLAY_SLOW = pytest.mark.parametrize(
    "mode", ["hts", pytest.param("replay", marks=_slow)], indirect=True
)
# The length of a run of some seconds; when stopped or killed and resumed, it must end the same.
TOTAL_STEPS = 3840
TOTAL = f"total_steps={TOTAL_STEPS}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Returns a function that starts a `Run` in the test's folder.

    At the end of the test all runs must have ended without leftovers.
    """
    with without_leftovers() as runs:

        def start(*words: str, command_line: list[str] | None = None) -> Run:
            runs.append(Run(tmp_path, *words, command_line=command_line))
            return runs[-1]

        yield start


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> str:
    """Returns the kind of the test's runs: `hts`, `async`, or `replay` of an asynchronous run."""
    return str(getattr(request, "param", "hts"))


@pytest.fixture(scope="session")
def run_to_the_end(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Returns a function that makes the small run of a mode without interruptions, once."""
    runs: dict[str, Run] = {}

    def get(mode: str) -> Run:
        if mode not in runs:
            words = WORDS if mode == "hts" else (*ASYNC_WORDS, "runner.record=true")
            runs[mode] = Run(tmp_path_factory.mktemp("uninterrupted"), "train", *words, TOTAL)
            assert runs[mode].wait() == 0, runs[mode].stderr
            assert not runs[mode].leftovers()
        return runs[mode]

    return get


@pytest.fixture
def words(mode: str, run_to_the_end: Callable[[str], Run]) -> tuple[str, ...]:
    """Returns the arguments of a small run of the test's mode."""
    if mode == "replay":
        return *ASYNC_WORDS, f"runner.replay={run_to_the_end(mode).folder}"
    return WORDS if mode == "hts" else ASYNC_WORDS


@pytest.fixture
def train(start: Callable[..., Run], words: tuple[str, ...]) -> Train:
    """Returns a function that starts a small `htsrl train`."""
    return lambda *more: start("train", *words, *more)


@pytest.fixture
def uninterrupted(mode: str, run_to_the_end: Callable[[str], Run]) -> Fingerprint:
    """Returns the fingerprint of the small run without interruptions."""
    return run_to_the_end(mode).fingerprint()
