"""Failing workers: one that dies, raises or hangs ends the run, and the message says why."""

from __future__ import annotations

import random
import re
import signal
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from tests.fault.conftest import (
    ALSO_ASYNC,
    ALSO_ASYNC_SLOW,
    ALSO_REPLAY_SLOW,
    TOTAL,
    TOTAL_STEPS,
    Train,
)
from tests.fault.processes import (
    ENDLESS,
    NUM_EXECUTORS,
    STEPS_PER_ROLLOUT,
    Run,
    wait_until,
)
from tests.harness import Fingerprint

# Environment 2 belongs to the second executor; it fails in the third rollout.
FAULTY = ("env=synthetic/faulty", "env.fault_env=2", "env.fault_step=40", ENDLESS)
TIMEOUTS = ("env.step_timeout_s=3", "actors.timeout_s=3")
# The message for each fault.
SIGNS = {
    "raise": "executor 1 raised\n.*RuntimeError: asked to fail at env step",
    "crash": "executor 1 was killed by SIGSEGV\n.*_fail_if_chosen",
    "exit": "executor 1 ended unexpectedly with exit status 3",
    "hang": "executor 1 hangs: busy with one operation for .*_fail_if_chosen",
}


slow = pytest.mark.slow


def expect_failure(run: Run, message: str) -> None:
    """Checks that a run ends with exit status 1, an error message and a usable checkpoint."""
    assert run.wait() == 1, run.stderr
    assert re.search(f"htsrl: error: {message}", run.stderr, re.DOTALL), run.stderr
    # A traceback may come from the worker, but not from the main process.
    assert "runner.py" not in run.stderr
    assert run.checkpoint().meta["env_steps"] <= run.env_steps


@ALSO_ASYNC_SLOW
@pytest.mark.parametrize("fault", ["raise", "crash", "hang", pytest.param("exit", marks=slow)])
def test_environment_fails(train: Train, mode: str, fault: str) -> None:
    run = train(
        *FAULTY, *TIMEOUTS, f"env.fault={fault}", f"checkpoint.interval={STEPS_PER_ROLLOUT}"
    )
    expect_failure(run, SIGNS[fault])
    if mode == "hts":
        assert run.checkpoint().meta["env_steps"] == 2 * STEPS_PER_ROLLOUT


@slow
@ALSO_ASYNC
def test_failed_run_can_be_evaluated(train: Train, start: Callable[..., Run]) -> None:
    run = train(*FAULTY)
    expect_failure(run, SIGNS["raise"])
    played = start("eval", "checkpoint=run", "episodes=2")
    assert played.wait() == 0, played.stderr


@ALSO_ASYNC_SLOW
@pytest.mark.parametrize(
    "fault", ["hang", *(pytest.param(fault, marks=slow) for fault in ("raise", "crash", "exit"))]
)
def test_environment_fails_when_built(train: Train, fault: str) -> None:
    run = train(*FAULTY, *TIMEOUTS, f"env.fault={fault}", "env.fault_step=-1")
    assert run.wait() == 1, run.stderr
    sign = "environment 2 .* its construction failed\nRuntimeError: asked to fail"
    message = sign if fault == "raise" else SIGNS[fault]
    assert re.search(f"htsrl: error: {message}", run.stderr, re.DOTALL), run.stderr


def worker_of(run: Run, role: str) -> psutil.Process:
    """Returns the process of `executor 0` or `actor 0`, by order of start."""
    return run.workers()[0 if role == "executor 0" else NUM_EXECUTORS]


def kill_and_resume(train: Train, start: Callable[..., Run], role: str, env_steps: int) -> Run:
    """Kills a worker soon after `env_steps`, then resumes to the end."""
    run = train(TOTAL)
    run.wait_for_steps(env_steps)
    time.sleep(random.uniform(0, 0.1))
    worker_of(run, role).kill()
    expect_failure(run, f"{role} was killed by SIGKILL")
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    return resumed


@ALSO_REPLAY_SLOW
def test_killed_executor(
    train: Train, start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    resumed = kill_and_resume(train, start, "executor 0", random.randrange(64, 2000))
    assert resumed.fingerprint() == uninterrupted


@slow
@ALSO_REPLAY_SLOW
@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize("role", ["executor 0", "actor 0"])
def test_worker_killed_at_a_random_moment(
    train: Train, start: Callable[..., Run], uninterrupted: Fingerprint, role: str, attempt: int
) -> None:
    resumed = kill_and_resume(train, start, role, random.randrange(64, 3000))
    assert resumed.fingerprint() == uninterrupted


@slow
@ALSO_ASYNC
def test_crashing_actor(train: Train) -> None:
    run = train(ENDLESS)
    run.wait_for_steps(200)
    worker_of(run, "actor 0").send_signal(signal.SIGSEGV)
    expect_failure(run, "actor 0 was killed by SIGSEGV\n.*in run_(async_)?actor")


@ALSO_ASYNC_SLOW
@pytest.mark.parametrize("role", [pytest.param("executor 0", marks=slow), "actor 0"])
def test_stopped_worker(train: Train, role: str) -> None:
    run = train(ENDLESS, *TIMEOUTS)
    run.wait_for_steps(200)
    worker_of(run, role).suspend()
    stopped = time.monotonic()
    expect_failure(run, f"{role} hangs: .*no answer: the worker is stopped")
    assert time.monotonic() - stopped > 3


@slow
@ALSO_ASYNC
@pytest.mark.parametrize("attempt", range(6))
@pytest.mark.parametrize("role", ["executor 0", "actor 0"])
def test_worker_stopped_at_a_random_moment(train: Train, role: str, attempt: int) -> None:
    # Environments do not sleep, so the signal hits workers while they read, serve or answer.
    run = train(ENDLESS, *TIMEOUTS, "env.mean_ms=0")
    run.wait_for_steps(1000)
    time.sleep(random.uniform(0, 0.2))
    worker_of(run, role).suspend()
    expect_failure(run, f"{role} hangs: .*no answer: the worker is stopped")


@slow
@ALSO_ASYNC
def test_one_of_two_actors_is_stopped(train: Train) -> None:
    run = train(ENDLESS, *TIMEOUTS, "actors.num_actors=2")
    run.wait_for_steps(200)
    run.actors()[1].suspend()
    enough = run.env_steps + 2000
    wait_until(lambda: run.env_steps >= enough or run.process.poll() is not None, "more steps")
    # The run ends if the actor was serving; otherwise the other actor takes over.
    if run.process.poll() is not None:
        expect_failure(run, "actor 1 hangs")
        return
    run.signal(signal.SIGTERM)
    assert run.wait() == 143, run.stderr


@pytest.mark.slow
@ALSO_REPLAY_SLOW
def test_pauses_change_nothing(train: Train, uninterrupted: Fingerprint) -> None:
    run = train(TOTAL, *TIMEOUTS)
    run.wait_for_steps(1)
    for _ in range(4):
        worker = random.choice(run.workers())
        worker.suspend()
        time.sleep(0.7)
        worker.resume()
        time.sleep(random.uniform(0, 0.2))
    # Like Ctrl-Z and `fg`, with a pause longer than any timeout.
    run.signal(signal.SIGSTOP, group=True)
    assert run.env_steps < TOTAL_STEPS
    time.sleep(5)
    run.signal(signal.SIGCONT, group=True)
    assert run.wait() == 0, run.stderr
    assert run.fingerprint() == uninterrupted


# A program whose actor thread fails after some work; only the role's code is replaced.
WITH_THREAD = """
import sys, time
from htsrl_cli.sampling import actor
from htsrl_cli.cli import main as cli
serve, served = actor.Actor.serve, 0
def failing(self, requests):
    global served
    served += 1
    if served < 200:
        return serve(self, requests)
    self._board.enter(self._worker)
    {fault}
actor.Actor.serve = failing
sys.exit(cli.main(sys.argv[1:]))
"""


@ALSO_ASYNC_SLOW
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise ValueError('out of order')", "actor 0 raised\n.*ValueError: out of order"),
        pytest.param(
            "time.sleep(1000)", "actor 0 hangs: busy with one operation .*in failing", marks=slow
        ),
    ],
    ids=["raises", "hangs"],
)
def test_actor_thread_fails(
    start: Callable[..., Run], words: tuple[str, ...], fault: str, message: str
) -> None:
    program = [sys.executable, "-c", WITH_THREAD.format(fault=fault), "train", *words]
    run = start(command_line=[*program, ENDLESS, "actors.host=thread", *TIMEOUTS])
    expect_failure(run, message)
