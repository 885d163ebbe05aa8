"""Workers: how they start, receive commands, and end.

A worker is a spawned process or a thread. A worker process ignores stop signals, because the runner
decides when to stop. A worker process ends when the main process ends, and writes its stack to a
file when it receives SIGUSR1. The processes that it started end with it; see
`htsrl_cli.workers.groups`. This module imports neither torch nor hydra, because executors import
it.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import select
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import IO, Any

import numpy as np

from htsrl_cli.errors import HtsrlError
from htsrl_cli.lifetime import ask_to_end_with_parent
from htsrl_cli.workers.groups import GUARD, lead_group

CONTEXT = multiprocessing.get_context("spawn")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
# Seconds that a worker may take to stop before it is killed.
STOP_GRACE_S = 3.0


class Pipe:
    """A one-way pipe of int32 numbers; both ends can be passed to spawned processes.

    A message consists of `width` numbers. A write of up to PIPE_BUF bytes is atomic, so messages of
    several writers do not mix and a reader always gets whole messages.
    """

    def __init__(self, width: int = 1) -> None:
        self._reader, self._writer = CONTEXT.Pipe(duplex=False)
        self._width = width
        # Several readers may wake up for one message; those that find nothing must not block.
        os.set_blocking(self._reader.fileno(), False)

    def fileno(self) -> int:
        """Returns the descriptor of the reading end, so that `poll` can wait for messages."""
        return self._reader.fileno()

    def read(self, most: int) -> list[int]:
        """Returns a flat list of the numbers in up to `most` messages; empty if none is waiting."""
        try:
            data = os.read(self._reader.fileno(), 4 * self._width * most)
        except BlockingIOError:
            return []
        numbers: list[int] = np.frombuffer(data, np.int32).tolist()
        return numbers

    def write(self, numbers: Sequence[int]) -> None:
        """Sends messages, given as a flat list of their numbers; blocks while the pipe is full."""
        data = np.array(numbers, np.int32).tobytes()
        chunk = select.PIPE_BUF - select.PIPE_BUF % (4 * self._width)
        for start in range(0, len(data), chunk):
            os.write(self._writer.fileno(), data[start : start + chunk])


@dataclass
class Worker:
    """The runner's view of a worker, which is a process or a thread of the main process.

    Attributes:
        name: the worker's role and index, for error messages.
        index: index of the worker's line on the board.
        timeout_s: seconds that one piece of work may take before the worker counts as hung.
        host: the process or thread that runs the worker.
        sentinel: an object that becomes readable when the worker ends.
        control: the connection that carries commands to the worker and its answers back. Only the
            main thread reads from it.
        stack: the file to which a worker process writes its stack when it crashes or gets SIGUSR1;
            the file stays empty for a thread.
        owes: True from the time a command is sent until its answer has been read.
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
        """Sends a command.

        If the worker has ended, nothing is sent; `Watcher.receive` then raises the worker's error.
        """
        self.owes = True
        with suppress(OSError):
            self.control.send((command, *args))


def start_process(
    name: str, index: int, timeout_s: float, main: Callable[..., None], *args: object
) -> Worker:
    """Spawns a process that runs `main(control, index, *args)`; returns its `Worker`."""
    ours, theirs = CONTEXT.Pipe()
    stack = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    process = CONTEXT.Process(
        target=_process_main,
        name=name,
        args=(main, theirs, _InheritedFile(stack.fileno()), index, args),
        daemon=True,
    )
    # Starting multiprocessing's resource tracker unblocks signals, so it is started beforehand.
    resource_tracker.ensure_running()
    with _stop_signals_held():
        process.start()
    assert process.pid is not None
    GUARD.watch(process.pid)
    theirs.close()
    return Worker(name, index, timeout_s, process, process.sentinel, ours, stack)


@contextmanager
def _stop_signals_held() -> Iterator[None]:
    """Delays stop signals until the end of the `with` block.

    The parent process must not end before it has sent the arguments to a process that it starts in
    the block. Blocking the signals alone does not ensure this: another thread (of BLAS, for
    example) may receive a signal, and Python would still run the handler in the main thread. The
    handlers are therefore replaced as well, and signals that arrive are raised again at the end.
    The new process starts with these signals blocked. It first sets itself to ignore them, and then
    unblocks them.
    """
    caught: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)

    handlers = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signum in caught:
            signal.raise_signal(signum)


def start_thread(
    name: str, index: int, timeout_s: float, main: Callable[..., None], *args: object
) -> Worker:
    """Starts a thread that runs `main(control, index, *args)`; returns its `Worker`."""
    ours, theirs = CONTEXT.Pipe()
    ended, end = CONTEXT.Pipe(duplex=False)

    def run() -> None:
        try:
            main(theirs, index, *args)
        except Exception as error:
            # The runner may have closed the connection after giving up on this worker.
            with suppress(OSError):
                theirs.send(("error", error if isinstance(error, HtsrlError) else _traceback()))
        finally:
            end.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return Worker(name, index, timeout_s, thread, ended, ours, tempfile.TemporaryFile())


def _traceback() -> str:
    return traceback.format_exc()


class _InheritedFile:
    """A file descriptor that a spawned process inherits."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (multiprocessing.reduction.DupFd(self.fd),)


def _detach(fd: Any) -> int:
    return int(fd.detach())


def _process_main(
    main: Callable[..., None], control: Connection, stack_fd: int, index: int, args: tuple[Any, ...]
) -> None:
    """Runs `main` in this worker process.

    If `main` raises an `HtsrlError`, the process sends this error to the runner, and ends. After
    any other exception, it sends the traceback and ends.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    lead_group()
    faulthandler.enable(stack_fd)
    faulthandler.register(signal.SIGUSR1, stack_fd)
    _leave_with_parent()
    # Sets the name that ps and top show.
    with suppress(OSError):
        Path("/proc/self/comm").write_text(multiprocessing.current_process().name)
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
    # Skips the interpreter's shutdown, which could block in an environment's own cleanup.
    os._exit(1)


def _leave_with_parent() -> None:
    """Makes this process end when its parent ends, even during a call that never returns."""
    ask_to_end_with_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def settle_in_launcher() -> None:
    """Prepares a process of a sweep's launcher (joblib) for a run.

    If the sweep is killed, the run receives SIGTERM (on Linux) and stops with a checkpoint. Worker
    processes start by "spawn": they would otherwise inherit joblib's own start method, which is not
    registered in them. Does nothing in a process that no launcher started.
    """
    if multiprocessing.current_process().name != "MainProcess":
        ask_to_end_with_parent(signal.SIGTERM)
        multiprocessing.set_start_method("spawn", force=True)


def leave_launcher(status: int) -> None:
    """Ends this process if a launcher started it; joblib would catch `SystemExit` and continue."""
    if multiprocessing.current_process().name != "MainProcess":
        logging.shutdown()
        os._exit(status)


def stop_workers(workers: Sequence[Worker], gracefully: bool) -> None:
    """Ends all workers and waits for them.

    Args:
        workers: the workers to end.
        gracefully: True to ask processes to stop, and to kill those that still run after
            `STOP_GRACE_S` seconds; False to kill them at once. Threads are only asked to stop.
    """
    for worker in workers:
        if gracefully or isinstance(worker.host, threading.Thread):
            worker.send("stop")
    deadline = time.monotonic() + (STOP_GRACE_S if gracefully else 0.0)
    for worker in workers:
        worker.host.join(max(0.0, deadline - time.monotonic()))
        if isinstance(worker.host, SpawnProcess) and worker.host.is_alive():
            worker.host.kill()
    for worker in workers:
        # A hung thread cannot be ended; it lives as long as this process.
        worker.host.join(STOP_GRACE_S)
        if isinstance(worker.host, SpawnProcess) and not worker.host.is_alive():
            assert worker.host.pid is not None
            GUARD.end(worker.host.pid)
        worker.control.close()
        worker.stack.close()
