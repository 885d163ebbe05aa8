"""Worker processes: how they start, how they are told what to do, and how they end.

A worker is a spawned process. It ignores stop signals, since stopping is the runner's word;
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

CONTEXT = multiprocessing.get_context("spawn")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# How long a worker that was told to stop may take before it is killed.
STOP_GRACE_S = 3.0
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
        """Reads the numbers of at most `most` messages; none when another reader was faster."""
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
        """Gives a command; that the worker is gone shows when the answer is waited for."""
        self.owes = True
        with suppress(OSError):
            self.control.send((command, *args))


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
    # The first process starts multiprocessing's tracker, too, which would lift the block.
    resource_tracker.ensure_running()
    with _stop_signals_held():
        process.start()
    theirs.close()
    return Worker(name, index, timeout_s, process, process.sentinel, ours, stack)


@contextmanager
def _stop_signals_held() -> Iterator[None]:
    """Stop signals wait for the end of the block.

    A process that is started in it inherits that until it ignores them. This one must not end
    before it has told the other what to do. For that the mask is not enough: other threads (BLAS
    has some) take the signal, and Python runs its handler in the main thread all the same.
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
    """Runs `main(control, index, *args)` in a thread of this process; see `Worker`."""
    ours, theirs = CONTEXT.Pipe()
    ended, end = CONTEXT.Pipe(duplex=False)

    def run() -> None:
        try:
            main(theirs, index, *args)
        except Exception as error:
            # The runner may have given up on it: then nobody is left to be told.
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
    # The name that ps and top show.
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
    # Skips interpreter shutdown, which could block in the environment's own clean-up.
    os._exit(1)


def _leave_with_parent() -> None:
    """Ends this process when its parent's ends, even inside a call that never returns."""
    ask_to_end_with_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def ask_to_end_with_parent(signum: int = signal.SIGKILL) -> None:
    """Has the kernel send `signum` when the thread that started this process ends; Linux only."""
    if sys.platform == "linux":
        with suppress(OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)


def settle_in_launcher() -> None:
    """Makes a process that a launcher of a sweep (joblib) started fit for a run.

    Where the sweep is killed, the run stops as if it had been asked to. And the launcher's own
    start method, which processes would hand on to those they start, is unknown to ours.
    """
    if multiprocessing.current_process().name != "MainProcess":
        ask_to_end_with_parent(signal.SIGTERM)
        multiprocessing.set_start_method("spawn", force=True)


def leave_launcher(status: int) -> None:
    """Ends a process that a launcher started; joblib would catch an exit and wait for more jobs."""
    if multiprocessing.current_process().name != "MainProcess":
        logging.shutdown()
        os._exit(status)


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
