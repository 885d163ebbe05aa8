"""SIGKILL of the main process: all other processes end, whatever they are doing."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.fault.conftest import ALSO_ASYNC, ALSO_ASYNC_SLOW, Train
from tests.fault.processes import ENDLESS, Run, wait_until
from tests.fault.test_signals import STUCK, STUCK_STEPS
from tests.harness import command


@pytest.fixture
def train(start: Callable[..., Run], words: tuple[str, ...]) -> Train:
    """Starts `htsrl train` on something small, as users do: with every process that it has then."""
    return lambda *more: start(command_line=command("train", *words, *more))


def kill(run: Run) -> None:
    """Kills the main process and checks that the others end soon."""
    run.signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not run.leftovers()


@pytest.mark.slow
@ALSO_ASYNC
def test_busy_workers_end(train: Train) -> None:
    run = train(*STUCK)
    run.wait_for_steps(STUCK_STEPS)
    run.wait_for_quiet()
    # The main process, the guard of its workers, two executors, an actor, and multiprocessing's
    # resource tracker.
    assert (len(run.processes()), len(run.workers())) == (6, 3)
    kill(run)
    # No process reports an error.
    assert "Traceback" not in run.stderr


@ALSO_ASYNC_SLOW
def test_waiting_and_stopped_workers_end(train: Train) -> None:
    run = train(ENDLESS)
    run.wait_for_steps(1)
    run.actors()[0].suspend()
    run.wait_for_quiet()
    kill(run)


@pytest.mark.slow
@ALSO_ASYNC
def test_starting_workers_end(train: Train) -> None:
    run = train(ENDLESS)
    wait_until(run.actors, "an actor")
    kill(run)


@pytest.mark.slow
@ALSO_ASYNC
def test_environment_in_a_long_step(train: Train) -> None:
    run = train(ENDLESS, "env.mean_ms=100_000")
    wait_until((run.folder / "checkpoints").exists, "the first checkpoint")
    kill(run)


@pytest.mark.slow
@ALSO_ASYNC
@pytest.mark.parametrize("attempt", range(20))
def test_killed_at_a_random_moment(train: Train, attempt: int) -> None:
    run = train(ENDLESS)
    run.wait_for_start()
    time.sleep(random.uniform(0, 8))
    kill(run)
