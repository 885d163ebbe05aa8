"""The watch on workers: notices one that dies, raises or hangs, and finds out why.

Free of torch and hydra.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from htsrl_cli.errors import HtsrlError, WorkerError
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import CONTEXT, Worker
from htsrl_cli.workers.scheduling import core_wait_s

# How often hangs are looked for, and how long a hung worker has to write its stack.
WATCH_PERIOD_S = 0.25
STACK_GRACE_S = 1.0
NO_STACK = "  (no answer: it is stopped, or stuck in the kernel)"
# Until a worker is busy for the first time it loads its libraries, which takes a loaded machine
# many seconds.
START_TIMEOUT_S = 300.0


class Watcher:
    """A thread that notices within a moment when a worker dies or hangs.

    The learner keeps the main thread busy for seconds: it calls `check` between minibatches, and
    whoever waits for workers waits for `failed`, too.

    A worker hangs that is busy with one thing for longer than its timeout. And where no worker is
    busy for that long although one owes an answer, there is one that does not wake up, or lost
    what it was told: it was stopped while it waited, for example.

    Args:
        workers: one with several cells on the board is named once for each, with the same name.
        stand_back: the workers hardly get a core where others want it; a tenth of the time that
            they wait for one counts.

    Attributes:
        failed: readable once a worker has failed.
        hang: the error of the worker that hangs; None so far.
    """

    def __init__(self, workers: Iterable[Worker], board: Board, stand_back: bool = False) -> None:
        self._workers = list(workers)
        self._board = board
        self._stand_back = stand_back
        self._core_wait_s = self._total_core_wait_s()
        self._since, self._busy_s = board.since(), board.busy_s()
        # Seconds since the worker began or ended something. They are counted from look to look:
        # a pause of the whole run (Ctrl-Z) is no hang.
        self._still_s = np.zeros(len(self._since))
        self._dead: list[Worker] = []
        self.hang: WorkerError | None = None
        self._closing, self._close = CONTEXT.Pipe(duplex=False)
        self.failed, self._fail = CONTEXT.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of the worker that failed, if any; only in the main thread."""
        if self.hang is not None:
            raise self.hang
        if self._dead:
            raise _cause_of_death(self._dead)

    def receive(self, worker: Worker, command: str) -> Any:
        """Returns the worker's answer to `command`; only in the main thread.

        Raises:
            HtsrlError: the worker failed instead.
        """
        if worker.control not in connection.wait([worker.control, self.failed]):
            self.check()
        try:
            answer, *results = worker.control.recv()
        except (EOFError, OSError):
            # It is gone without a word: the watcher knows how.
            connection.wait([self.failed])
            self.check()
            raise
        worker.owes = False
        if answer == "error":
            raise _as_error(worker, results[0])
        assert answer == command, (answer, command)
        return results[0] if results else None

    def stop(self) -> None:
        """Ends the watch; workers may then end without that being a failure."""
        self._close.close()
        self._thread.join()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not (self._dead or self.hang):
            sentinels = {worker.sentinel for worker in self._workers}
            ready = connection.wait([self._closing, *sentinels], WATCH_PERIOD_S)
            if self._closing in ready:
                return
            self._dead = [worker for worker in self._workers if worker.sentinel in ready]
            before, looked = looked, time.monotonic()
            self._look_at_board(min(looked - before, 2 * WATCH_PERIOD_S))
            if not self._dead:
                self.hang = self._find_hang() or self._find_stall()
        self._fail.send_bytes(b"!")

    def _look_at_board(self, elapsed_s: float) -> None:
        since, busy_s = self._board.since(), self._board.busy_s()
        moved = (since != self._since) | (busy_s != self._busy_s)
        # Nobody owes anything: what is asked for next has all its time.
        resting = (since == 0) & (not any(worker.owes for worker in self._workers))
        counted_s = max(elapsed_s - self._new_core_wait_s(), 0.1 * elapsed_s)
        self._still_s = np.where(moved | resting, 0.0, self._still_s + counted_s)
        self._since, self._busy_s = since, busy_s

    def _new_core_wait_s(self) -> float:
        """Seconds since the last call that workers which stand back have waited for a core."""
        before, self._core_wait_s = self._core_wait_s, self._total_core_wait_s()
        return self._core_wait_s - before

    def _total_core_wait_s(self) -> float:
        if not self._stand_back:
            return 0.0
        pids = {
            worker.host.pid for worker in self._workers if isinstance(worker.host, SpawnProcess)
        }
        return sum(core_wait_s(pid) for pid in pids if pid is not None)

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
    """Returns what is known of the workers that ended, from one that said why if there is one."""
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
