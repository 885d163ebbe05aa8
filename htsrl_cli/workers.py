"""Worker processes: how they start, how they are watched, and how they end.

A worker is a spawned process. It ignores SIGINT and SIGTERM, since stopping is the runner's word;
it leaves when the runner's process is gone; and it says on SIGUSR1 where it stands. Free of torch
and hydra: executors import this module.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import IO, Any

import numpy as np

from htsrl_cli.errors import HtsrlError, WorkerError
from htsrl_cli.storage import Board

CONTEXT = multiprocessing.get_context("spawn")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How often the watcher looks for hangs, and how long a hung worker has to write its stack.
WATCH_PERIOD_S = 0.25
STACK_GRACE_S = 1.0
# Until a worker is busy for the first time it loads its libraries, which takes a loaded machine
# many seconds.
START_TIMEOUT_S = 300.0
# How long a worker that was told to stop may take before it is killed.
STOP_GRACE_S = 3.0
NO_STACK = "  (no answer: it is stopped, or stuck in the kernel)"
_PR_SET_PDEATHSIG = 1


class Pipe:
    """A one-way pipe of int32 numbers; both ends can be passed to spawned processes.

    A write of up to 4 KiB is atomic, so that messages of several writers do not mix, and every
    message is a multiple of `width` numbers, so that a reader gets whole ones.
    """

    def __init__(self, width: int = 1) -> None:
        self._reader, self._writer = CONTEXT.Pipe(duplex=False)
        self._width = width
        # Several readers may be woken for one message; those that come late must not block.
        os.set_blocking(self._reader.fileno(), False)

    def fileno(self) -> int:
        """The reading end's descriptor, to wait for."""
        return self._reader.fileno()

    def read(self, most: int) -> list[int]:
        """At most `most` messages' numbers; empty when another reader was faster."""
        try:
            data = os.read(self._reader.fileno(), 4 * self._width * most)
        except BlockingIOError:
            return []
        numbers: list[int] = np.frombuffer(data, np.int32).tolist()
        return numbers

    def write(self, numbers: Sequence[int]) -> None:
        """Sends messages; waits while the pipe is full."""
        data = np.array(numbers, np.int32).tobytes()
        chunk = 4096 - 4096 % (4 * self._width)
        for start in range(0, len(data), chunk):
            os.write(self._writer.fileno(), data[start : start + chunk])


@dataclass
class Worker:
    """The runner's view of a worker: a process, or a thread of this one.

    Attributes:
        index: its cell on the board.
        timeout_s: how long it may be busy with one thing.
        host: what runs it.
        sentinel: readable once it has ended.
        control: commands to it, results from it; only the main thread reads.
        stack: where a process writes its stack when it crashes or is asked to.
        owes: it has a command and its answer has not been read.
    """

    name: str
    index: int
    timeout_s: float
    host: SpawnProcess | threading.Thread
    sentinel: int | Connection
    control: Connection
    stack: IO[bytes]
    owes: bool = False

    def send(self, command: str, *args: object) -> None:
        """Gives a command; that the worker is gone shows when it is asked for the answer."""
        self.owes = True
        with suppress(OSError):
            self.control.send((command, *args))

    def receive(self, command: str, watcher: Watcher) -> Any:
        """What the worker answers to `command`.

        Raises:
            HtsrlError: the worker failed instead.
        """
        if self.control not in connection.wait([self.control, watcher.failed]):
            watcher.check()
        try:
            answer, *results = self.control.recv()
        except (EOFError, OSError):
            # It is gone without a word: the watcher knows how.
            connection.wait([watcher.failed])
            watcher.check()
            raise
        self.owes = False
        if answer == "error":
            raise _as_error(self, results[0])
        assert answer == command, (answer, command)
        return results[0] if results else None


def start_process(
    name: str, index: int, timeout_s: float, main: Callable[..., None], *args: object
) -> Worker:
    """Spawns a process that runs `main(control, index, *args)`; see `Worker`."""
    ours, theirs = CONTEXT.Pipe()
    stack = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    process = CONTEXT.Process(
        target=_process_main,
        name=name,
        args=(main, theirs, _InheritedFile(stack.fileno()), index, args),
        daemon=True,
    )
    # Stop signals wait until the child has said that it ignores them. The first process starts
    # multiprocessing's tracker, too, which would lift the block: that is done before.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    theirs.close()
    return Worker(name, index, timeout_s, process, process.sentinel, ours, stack)


def start_thread(
    name: str, index: int, timeout_s: float, main: Callable[..., None], *args: object
) -> Worker:
    """Runs `main(control, index, *args)` in a thread of this process; see `Worker`."""
    ours, theirs = CONTEXT.Pipe()
    ended, end = CONTEXT.Pipe(duplex=False)

    def run() -> None:
        try:
            main(theirs, index, *args)
        except Exception as error:
            theirs.send(("error", error if isinstance(error, HtsrlError) else _traceback()))
        finally:
            end.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return Worker(name, index, timeout_s, thread, ended, ours, tempfile.TemporaryFile())


def _traceback() -> str:
    return traceback.format_exc()


class _InheritedFile:
    """A descriptor that a spawned process inherits."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (multiprocessing.reduction.DupFd(self.fd),)


def _detach(fd: Any) -> int:
    return int(fd.detach())


def _process_main(
    main: Callable[..., None], control: Connection, stack_fd: int, index: int, args: tuple[Any, ...]
) -> None:
    """Runs a worker; what it raises goes to the runner as text."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    faulthandler.enable(stack_fd)
    faulthandler.register(signal.SIGUSR1, stack_fd)
    _leave_with_parent()
    try:
        main(control, index, *args)
    except HtsrlError as error:
        _say_last_words(control, error)
    except BaseException:
        _say_last_words(control, _traceback())


def _say_last_words(control: Connection, words: object) -> None:
    with suppress(OSError):
        control.send(("error", words))
    logging.shutdown()
    # Skips interpreter shutdown, which could block in the environment's own clean-up.
    os._exit(1)


def _leave_with_parent() -> None:
    """Ends this process when its parent's ends, even inside a call that never returns."""
    if sys.platform == "linux":
        with suppress(OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


class Watcher:
    """A thread that notices within a moment when a worker dies or hangs.

    The learner keeps the main thread busy for seconds: it calls `check` between minibatches, and
    whoever waits for workers waits for `failed`, too.

    A worker hangs that is busy with one thing for longer than its timeout. And where no worker is
    busy for that long although one owes an answer, there is one that does not wake up, or lost
    what it was told: it was stopped while it waited, for example.

    Attributes:
        failed: readable once a worker has failed.
    """

    def __init__(self, workers: Iterable[Worker], board: Board) -> None:
        self._workers = list(workers)
        self._board = board
        self._since, self._busy_s = board.since(), board.busy_s()
        # Seconds since the worker began or ended something. They are counted from look to look:
        # a pause of the whole run (Ctrl-Z) is no hang.
        self._still_s = np.zeros(len(self._since))
        self._dead: list[Worker] = []
        self._hang: WorkerError | None = None
        self._closing, self._close = CONTEXT.Pipe(duplex=False)
        self.failed, self._fail = CONTEXT.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of the worker that failed, if any; only in the main thread."""
        if self._hang is not None:
            raise self._hang
        if self._dead:
            raise _cause_of_death(self._dead)

    def stop(self) -> None:
        """Ends the watch; workers may then end without that being a failure."""
        self._close.close()
        self._thread.join()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not (self._dead or self._hang):
            sentinels = [worker.sentinel for worker in self._workers]
            ready = connection.wait([self._closing, *sentinels], WATCH_PERIOD_S)
            if self._closing in ready:
                return
            self._dead = [worker for worker in self._workers if worker.sentinel in ready]
            before, looked = looked, time.monotonic()
            self._look_at_board(min(looked - before, 2 * WATCH_PERIOD_S))
            if not self._dead:
                self._hang = self._find_hang() or self._find_stall()
        self._fail.send_bytes(b"!")

    def _look_at_board(self, elapsed_s: float) -> None:
        since, busy_s = self._board.since(), self._board.busy_s()
        moved = (since != self._since) | (busy_s != self._busy_s)
        self._still_s = np.where(moved, 0.0, self._still_s + elapsed_s)
        self._since, self._busy_s = since, busy_s

    def _find_hang(self) -> WorkerError | None:
        """A worker that is busy with one thing for too long."""
        for worker in self._workers:
            still_s = self._still_s[worker.index]
            if self._since[worker.index] and still_s > worker.timeout_s:
                return WorkerError(
                    f"{worker.name} hangs: busy with one thing for {still_s:.1f} s, more than its "
                    f"timeout of {worker.timeout_s:g} s; it stands at\n"
                    f"{_ask_for_stack(worker) or NO_STACK}"
                )
        return None

    def _find_stall(self) -> WorkerError | None:
        """All workers wait although one has something to do; blames those that do not react."""
        still_s = float(self._still_s.min())
        if self._since.any() or still_s <= self._stall_timeout_s():
            return None
        if not any(worker.owes and not worker.control.poll() for worker in self._workers):
            return None
        stacks = {worker.name: _ask_for_stack(worker) for worker in self._workers}
        deaf = {name: NO_STACK for name, stack in stacks.items() if not stack}
        blamed = deaf or stacks
        where = "\n".join(f"{name} stands at\n{stack}" for name, stack in blamed.items())
        return WorkerError(
            f"{', '.join(blamed)} hangs: there is work to do and no worker has done anything for "
            f"{still_s:.1f} s\n{where}"
        )

    def _stall_timeout_s(self) -> float:
        if (self._busy_s == 0).any():
            return START_TIMEOUT_S
        return min(worker.timeout_s for worker in self._workers)


def _cause_of_death(dead: list[Worker]) -> HtsrlError:
    """What is known of the workers that ended, from one that said why if there is one."""
    for worker in dead:
        with suppress(EOFError, OSError):
            while worker.control.poll():
                answer, *results = worker.control.recv()
                if answer == "error":
                    return _as_error(worker, results[0])
    worker = dead[0]
    worker.host.join()
    code = worker.host.exitcode if isinstance(worker.host, SpawnProcess) else None
    if code is not None and code < 0:
        how = f"{worker.name} was killed by {signal.Signals(-code).name}"
        return WorkerError(f"{how}\n{_read_stack(worker)}".strip())
    return WorkerError(f"{worker.name} ended unexpectedly with exit status {code}")


def _as_error(worker: Worker, words: HtsrlError | str) -> HtsrlError:
    if isinstance(words, HtsrlError):
        return words
    return WorkerError(f"{worker.name} raised\n{words.strip()}")


def _ask_for_stack(worker: Worker) -> str:
    """A hung worker's stack, by `faulthandler` even inside C code; empty without an answer."""
    if isinstance(worker.host, threading.Thread):
        return _thread_stack(worker.host)
    with suppress(OSError):
        os.kill(worker.host.pid or 0, signal.SIGUSR1)
    deadline = time.monotonic() + STACK_GRACE_S
    text = ""
    while time.monotonic() < deadline and not text:
        time.sleep(0.05)
        text = _read_stack(worker)
    return text


def _thread_stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip()


def _read_stack(worker: Worker) -> str:
    worker.stack.seek(0)
    return worker.stack.read().decode(errors="replace").strip()


def stop_workers(workers: Sequence[Worker], gracefully: bool) -> None:
    """Ends all workers and waits for them: asked first where `gracefully`, killed otherwise."""
    for worker in workers:
        if gracefully or isinstance(worker.host, threading.Thread):
            worker.send("stop")
    deadline = time.monotonic() + (STOP_GRACE_S if gracefully else 0.0)
    for worker in workers:
        worker.host.join(max(0.0, deadline - time.monotonic()))
        if isinstance(worker.host, SpawnProcess) and worker.host.is_alive():
            worker.host.kill()
    for worker in workers:
        # A thread that hangs cannot be ended; it goes with this process.
        worker.host.join(STOP_GRACE_S)
        worker.control.close()
        worker.stack.close()
