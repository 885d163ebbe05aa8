"""SIGINT and SIGTERM: a run ends at its next barrier, or at once while it starts, and resumes."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.conftest import (
    ALSO_ASYNC,
    ALSO_ASYNC_SLOW,
    ALSO_REPLAY,
    TOTAL,
    TOTAL_STEPS,
    Train,
)
from tests.fault.processes import ENDLESS, STEPS_PER_ROLLOUT, WORDS, Run, wait_until
from tests.harness import Fingerprint, command

# The third rollout never ends: environment 0 hangs in it.
STUCK = (
    "env=synthetic/faulty",
    "env.fault=hang",
    "env.fault_step=40",
    "env.step_timeout_s=1000",
    ENDLESS,
)
STUCK_STEPS = 2 * STEPS_PER_ROLLOUT
STOPPING = "stopping after this rollout"


@ALSO_REPLAY
def test_interrupt_finishes_the_rollout_and_resumes(
    train: Train, start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    run = train(TOTAL)
    run.wait_for_steps(1000)
    run.signal(signal.SIGINT)
    assert run.wait() == 130, run.stderr
    assert STOPPING in run.stderr
    assert "Traceback" not in run.stderr
    # The checkpoint is of the barrier of the last line of metrics, not of an earlier one.
    assert run.checkpoint().meta["env_steps"] == run.env_steps < TOTAL_STEPS
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    assert resumed.fingerprint() == uninterrupted


def test_hangup_stops_like_a_termination(
    train: Train, start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    run = train(TOTAL)
    run.wait_for_steps(1000)
    run.signal(signal.SIGHUP, group=True)
    assert run.wait() == 129, run.stderr
    assert "SIGHUP: stopping after this rollout" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.checkpoint().meta["env_steps"] == run.env_steps < TOTAL_STEPS
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    assert resumed.fingerprint() == uninterrupted


def test_hangup_is_ignored_under_nohup(
    start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    run = start(command_line=["nohup", *command("train", *WORDS, TOTAL)])
    run.wait_for_start()
    run.signal(signal.SIGHUP, group=True)
    run.wait_for_steps(500)
    run.signal(signal.SIGHUP, group=True)
    assert run.wait() == 0, run.stderr
    assert run.fingerprint() == uninterrupted


# Starts a command in a terminal, which it closes when the file `close` appears.
IN_TERMINAL = """
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
os.set_blocking(terminal, False)
while not os.path.exists("close"):
    try:
        os.read(terminal, 65536)
    except BlockingIOError:
        time.sleep(0.01)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_closed_terminal_stops_a_run(start: Callable[..., Run], tmp_path: Path) -> None:
    words = command("train", *WORDS, ENDLESS)
    run = start(command_line=[sys.executable, "-c", IN_TERMINAL, *words])
    run.wait_for_steps(500)
    (tmp_path / "close").touch()
    assert run.wait() == 129
    log = (run.folder / "train.log").read_text()
    assert "SIGHUP: stopping after this rollout" in log
    assert "Traceback" not in log
    assert run.checkpoint().meta["env_steps"] == run.env_steps


@pytest.mark.slow
@ALSO_ASYNC
def test_terminating_the_whole_group(train: Train) -> None:
    run = train(ENDLESS)
    run.wait_for_steps(100)
    # timeout(1) and batch systems signal the process, then its group; both are one request.
    run.signal(signal.SIGTERM)
    run.signal(signal.SIGTERM, group=True)
    assert run.wait() == 143, run.stderr
    assert STOPPING in run.stderr
    assert "Traceback" not in run.stderr
    assert run.checkpoint().meta["env_steps"] == run.env_steps


def stop_while_starting(run: Run, number: int, group: bool, delay_s: float) -> None:
    """Signals a run `delay_s` after its start."""
    run.wait_for_start()
    time.sleep(delay_s)
    run.signal(number, group)
    assert run.wait() == 128 + number, run.stderr
    assert "Traceback" not in run.stderr
    assert "Exception" not in run.stderr


# While Hydra is imported, while torch is imported, and while executors start.
@ALSO_ASYNC_SLOW
@pytest.mark.parametrize("delay_s", [0.0, 0.5, 1.5, 3.0])
def test_signal_while_starting(train: Train, delay_s: float) -> None:
    number = random.choice([signal.SIGINT, signal.SIGTERM])
    stop_while_starting(train(ENDLESS), number, random.random() < 0.5, delay_s)


@pytest.mark.slow
@ALSO_ASYNC
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_at_random_moments(train: Train, number: int, group: bool) -> None:
    for _ in range(8):
        run = train(ENDLESS, "resume=auto")
        stop_while_starting(run, number, group, random.uniform(0, 6))


@pytest.mark.slow
@ALSO_ASYNC
def test_signal_while_workers_start(train: Train) -> None:
    run = train(ENDLESS)
    wait_until(run.workers, "a worker")
    run.signal(signal.SIGINT, group=True)
    assert run.wait() == 130, run.stderr
    assert "Traceback" not in run.stderr
    # A run stopped before its first rollout can be started again.
    again = train("total_steps=128", "resume=auto")
    assert again.wait() == 0, again.stderr


@ALSO_ASYNC_SLOW
def test_second_signal_ends_at_once(train: Train) -> None:
    run = train(*STUCK, "runner.stop_grace_s=1000")
    run.wait_for_steps(STUCK_STEPS)
    run.wait_for_quiet()
    run.signal(signal.SIGINT)
    wait_until(lambda: STOPPING in run.stderr, "the first signal's answer")
    time.sleep(1.5)
    assert run.process.poll() is None
    run.signal(signal.SIGINT)
    assert run.wait(patience_s=30) == 130
    assert "Traceback" not in run.stderr
    assert run.checkpoint().meta["env_steps"] == 0


@ALSO_ASYNC_SLOW
def test_grace_ends_the_wait_for_a_rollout(train: Train) -> None:
    run = train(*STUCK, "runner.stop_grace_s=2")
    run.wait_for_steps(STUCK_STEPS)
    run.wait_for_quiet()
    run.signal(signal.SIGTERM)
    assert run.wait(patience_s=60) == 143
    assert "runner.stop_grace_s=2" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.checkpoint().meta["env_steps"] == 0
