"""Workers with toy roles: starting, detecting each kind of failure, and ending."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

from htsrl_cli.errors import ConfigError, WorkerError
from htsrl_cli.workers import watcher
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import (
    STOP_GRACE_S,
    STOP_SIGNALS,
    Pipe,
    Worker,
    start_process,
    start_thread,
    stop_workers,
)
from htsrl_cli.workers.watcher import Watcher
from tests.conftest import ROOT

TIMEOUT_S = 1.0
PATIENCE_S = 60.0
Start = Callable[..., Worker]


def role(control: Connection, index: int, board: Board) -> None:
    """Obeys commands, and marks itself busy meanwhile."""
    board.enter(index)
    board.leave(index)
    while True:
        command, *args = control.recv()
        if command == "stop":
            return
        board.enter(index)
        control.send((command, getattr(sys.modules[__name__], command)(*args)))
        board.leave(index)


def double(number: int) -> int:
    return 2 * number


def complain() -> None:
    raise ValueError("no such number")


def misconfigure() -> None:
    raise ConfigError("env.id", "Nowhere-v0", "there is no such environment")


def leave(code: int) -> None:
    os._exit(code)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def defy_stop(control: Connection, index: int, board: Board) -> None:
    """Ignores the command to stop."""
    board.enter(index)
    board.leave(index)
    control.send(("ready",))
    while True:
        time.sleep(1)


def forget(control: Connection, index: int, board: Board) -> None:
    """Receives commands and never answers them."""
    board.enter(index)
    board.leave(index)
    while control.recv() != ("stop",):
        pass


@dataclass
class Crew:
    """A group of workers and their watcher."""

    board: Board
    workers: list[Worker]
    watcher: Watcher

    def ask(self, command: str, *args: object) -> object:
        """Sends the first worker a command; returns its answer."""
        self.workers[0].send(command, *args)
        return self.watcher.receive(self.workers[0], command)


@pytest.fixture
def hire() -> Iterator[Callable[..., Crew]]:
    """Returns a function that starts workers from (start, main) pairs; they end with the test."""
    crews: list[Crew] = []

    def hire(*roles: tuple[Start, Callable[..., None]]) -> Crew:
        board = Board(len(roles))
        workers = [
            start(f"worker {i}", i, TIMEOUT_S, main, board) for i, (start, main) in enumerate(roles)
        ]
        deadline = time.monotonic() + PATIENCE_S
        while not board.busy_s().all():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        crews.append(Crew(board, workers, Watcher(workers, board)))
        return crews[-1]

    yield hire
    for crew in crews:
        crew.watcher.stop()
        stop_workers(crew.workers, gracefully=False)


def process_of(worker: Worker) -> psutil.Process:
    assert isinstance(worker.host, SpawnProcess)
    return psutil.Process(worker.host.pid)


BOTH = pytest.mark.parametrize("start", [start_process, start_thread])


@BOTH
def test_commands_are_answered(hire: Callable[..., Crew], start: Start) -> None:
    crew = hire((start, role), (start, role))
    assert crew.ask("double", 21) == 42
    assert crew.ask("double", 4) == 8
    # Both are idle and owe no answer, which is never a hang.
    time.sleep(2 * TIMEOUT_S)
    crew.watcher.check()
    crew.watcher.stop()
    stop_workers(crew.workers, gracefully=True)
    assert not any(worker.host.is_alive() for worker in crew.workers)


@BOTH
def test_what_a_worker_raises(hire: Callable[..., Crew], start: Start) -> None:
    with pytest.raises(WorkerError, match=r"(?s)worker 0 raised\n.*in complain.*no such number"):
        hire((start, role)).ask("complain")
    # An error for the user keeps its type.
    with pytest.raises(ConfigError, match=r"env.id=Nowhere-v0: there is no"):
        hire((start, role)).ask("misconfigure")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["leave", 7], "worker 0 ended unexpectedly with exit status 7"),
        (["crash"], r"worker 0 was killed by SIGSEGV\n(?s:.*)in crash"),
    ],
)
def test_how_a_process_ends(hire: Callable[..., Crew], command: list[Any], message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        hire((start_process, role)).ask(*command)


def test_death_of_an_idle_process_is_noticed(hire: Callable[..., Crew]) -> None:
    crew = hire((start_process, role), (start_process, role))
    crew.watcher.check()
    process_of(crew.workers[1]).kill()
    assert connection.wait([crew.watcher.failed], PATIENCE_S)
    with pytest.raises(WorkerError, match=r"^worker 1 was killed by SIGKILL$"):
        crew.watcher.check()
    # A wait for another worker's answer raises it, too.
    crew.workers[0].send("sleep", 1000)
    with pytest.raises(WorkerError, match="worker 1"):
        crew.watcher.receive(crew.workers[0], "sleep")


@BOTH
def test_hang_in_a_command(hire: Callable[..., Crew], start: Start) -> None:
    crew = hire((start, role))
    assert crew.ask("sleep", TIMEOUT_S / 2) is None
    message = rf"worker 0 hangs: .*more than its timeout of {TIMEOUT_S:g} s(?s:.*)in sleep"
    with pytest.raises(WorkerError, match=message):
        crew.ask("sleep", 4 * TIMEOUT_S)


def test_stopped_while_busy(hire: Callable[..., Crew]) -> None:
    crew = hire((start_process, role), (start_process, role))
    crew.workers[0].send("sleep", TIMEOUT_S / 2)
    while not crew.board.since()[0]:
        time.sleep(0.01)
    process_of(crew.workers[0]).suspend()
    with pytest.raises(WorkerError, match=r"worker 0 hangs: busy(?s:.*)the worker is stopped"):
        crew.watcher.receive(crew.workers[0], "sleep")


def test_stopped_while_waiting(hire: Callable[..., Crew]) -> None:
    crew = hire((start_process, role), (start_process, role))
    process_of(crew.workers[0]).suspend()
    # There is no work for it, so this is no hang.
    time.sleep(2 * TIMEOUT_S)
    crew.watcher.check()
    with pytest.raises(WorkerError, match=r"^worker 0 hangs: there is work(?s:.*)is stopped"):
        crew.ask("double", 1)


def test_one_that_has_rested_has_all_its_time(hire: Callable[..., Crew]) -> None:
    """Resumes a worker late, but in time: the pause before its command does not count."""
    crew = hire((start_process, role))
    process_of(crew.workers[0]).suspend()
    time.sleep(2 * TIMEOUT_S)
    crew.workers[0].send("double", 21)
    time.sleep(2 * watcher.WATCH_PERIOD_S)
    process_of(crew.workers[0]).resume()
    assert crew.watcher.receive(crew.workers[0], "double") == 42
    assert not connection.wait([crew.watcher.failed], watcher.STACK_GRACE_S)


def test_little_of_the_wait_for_a_core_counts_where_workers_stand_back(
    hire: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = hire((start_process, role))
    # As if another process used the core all the time.
    monkeypatch.setattr(watcher, "core_wait_s", lambda pid: time.monotonic())
    patient = Watcher(crew.workers, crew.board, stand_back=True)
    crew.workers[0].send("sleep", 1000)
    assert connection.wait([crew.watcher.failed, patient.failed]) == [crew.watcher.failed]
    began = time.monotonic()
    assert connection.wait([patient.failed], PATIENCE_S)
    assert time.monotonic() - began > 4 * TIMEOUT_S
    patient.stop()


def test_answer_that_is_not_fetched_is_no_hang(hire: Callable[..., Crew]) -> None:
    crew = hire((start_process, role))
    crew.workers[0].send("double", 1)
    time.sleep(3 * TIMEOUT_S)
    crew.watcher.check()
    assert crew.watcher.receive(crew.workers[0], "double") == 2


def test_lost_command(hire: Callable[..., Crew]) -> None:
    """Checks that the message names all workers with their stacks, as none is stopped."""
    crew = hire((start_process, forget), (start_process, role))
    with pytest.raises(WorkerError) as caught:
        crew.ask("double", 1)
    assert re.search(r"(?s)^worker 0, worker 1 hang:.*in forget.*in role", str(caught.value))


def test_pauses_are_no_hangs(hire: Callable[..., Crew]) -> None:
    crew = hire((start_process, role))
    process = process_of(crew.workers[0])
    crew.workers[0].send("sleep", TIMEOUT_S / 2)
    for _ in range(5):
        process.suspend()
        time.sleep(TIMEOUT_S / 4)
        process.resume()
        crew.watcher.receive(crew.workers[0], "sleep")
        crew.workers[0].send("sleep", TIMEOUT_S / 4)
    assert crew.watcher.receive(crew.workers[0], "sleep") is None


def test_a_pause_of_the_whole_run_is_no_hang(
    hire: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = hire((start_process, role))
    crew.workers[0].timeout_s = 100.0
    crew.workers[0].send("sleep", 2.0)
    # Let the watcher see that the worker is busy before the clock jumps.
    time.sleep(4 * watcher.WATCH_PERIOD_S)
    assert crew.board.since()[0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000, sleep=time.sleep)
    monkeypatch.setattr(watcher, "time", clock)
    assert crew.watcher.receive(crew.workers[0], "sleep") is None
    crew.watcher.check()


class SignalsWhilePickled:
    """An object that signals this process while it is pickled for a new one; see `events`."""

    events: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        self.events.append("pickled")
        return int, ()


def receive_once(control: Connection, index: int, extra: int) -> None:
    control.recv()


def test_stop_signals_wait_for_a_start_under_way() -> None:
    events, done = SignalsWhilePickled.events, threading.Event()
    # Another thread may receive the signal, like one of BLAS.
    other = threading.Thread(target=done.wait)
    other.start()
    previous = signal.signal(signal.SIGTERM, lambda *_: events.append("signalled"))
    try:
        worker = start_process("worker", 0, TIMEOUT_S, receive_once, SignalsWhilePickled())
    finally:
        signal.signal(signal.SIGTERM, previous)
        done.set()
        other.join()
    stop_workers([worker], gracefully=True)
    assert isinstance(worker.host, SpawnProcess)
    assert worker.host.exitcode == 0
    assert events == ["pickled", "signalled"]


class BlockedAtStart:
    """An object that unpickles, while a process is set up, to the list of its blocked signals."""

    def __reduce__(self) -> tuple[Callable[[], list[int]], tuple[()]]:
        return blocked, ()


def blocked() -> list[int]:
    return sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def tell(control: Connection, index: int, word: object) -> None:
    control.send(word)
    control.recv()


def test_first_process_is_born_with_stop_signals_blocked() -> None:
    # In a new program, so that it is the first process started.
    program = (
        "from tests.integration.test_workers import *\n"
        "worker = start_process('worker', 0, 1.0, tell, BlockedAtStart())\n"
        "print(worker.control.recv())\n"
        "stop_workers([worker], gracefully=True)"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{sorted(map(int, STOP_SIGNALS))}\n"


def test_stop_signals_do_not_end_a_process(hire: Callable[..., Crew]) -> None:
    crew = hire((start_process, role))
    for number in STOP_SIGNALS:
        process_of(crew.workers[0]).send_signal(number)
    assert crew.ask("double", 3) == 6


def test_process_that_does_not_stop_is_killed(hire: Callable[..., Crew]) -> None:
    crew = hire((start_process, defy_stop))
    crew.watcher.stop()
    started = time.monotonic()
    stop_workers(crew.workers, gracefully=True)
    assert time.monotonic() - started >= STOP_GRACE_S
    assert not crew.workers[0].host.is_alive()


def send_numbers(control: Connection, index: int, pipe: Pipe, count: int) -> None:
    """Writes many pairs (index, k), so that the pipe is full most of the time."""
    for k in range(0, count, 10):
        pipe.write([number for i in range(k, k + 10) for number in (index, i)])
    control.recv()


def test_messages_of_several_writers_do_not_mix() -> None:
    pipe, count = Pipe(width=2), 20_000
    workers = [
        start_process(f"writer {i}", i, TIMEOUT_S, send_numbers, pipe, count) for i in range(2)
    ]
    seen: dict[int, list[int]] = {0: [], 1: []}
    while len(seen[0]) + len(seen[1]) < 2 * count:
        assert connection.wait([pipe.fileno()], PATIENCE_S)
        numbers = pipe.read(7)
        assert len(numbers) % 2 == 0
        assert len(numbers) <= 14
        for writer, number in zip(numbers[::2], numbers[1::2], strict=True):
            seen[writer].append(number)
    stop_workers(workers, gracefully=True)
    assert seen == {0: list(range(count)), 1: list(range(count))}


def test_message_longer_than_an_atomic_write() -> None:
    pipe, numbers = Pipe(width=3), list(range(30_000))
    writer = threading.Thread(target=pipe.write, args=(numbers,))
    writer.start()
    received: list[int] = []
    while len(received) < len(numbers):
        assert connection.wait([pipe.fileno()], PATIENCE_S)
        received += pipe.read(100)
    writer.join()
    assert received == numbers
    # An empty pipe, as if another reader had been faster, gives nothing.
    assert pipe.read(1) == []
