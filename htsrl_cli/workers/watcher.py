"""The watcher: a thread that detects workers that die, raise or hang, and finds the cause.

This module imports neither torch nor hydra.
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

# Seconds between two checks, and seconds that a hung worker has to write its stack.
WATCH_PERIOD_S = 0.25
STACK_GRACE_S = 1.0
NO_STACK = "  (no answer: the worker is stopped, or stuck in the kernel)"
# A worker first loads its libraries, which may take many seconds on a busy machine.
START_TIMEOUT_S = 300.0


class Watcher:
    """A thread that detects dead and hung workers.

    The learner keeps the main thread busy for seconds at a time, so it calls `check` between
    minibatches. Code that waits for workers also waits for `failed`.

    A worker hangs if one piece of work takes longer than the worker's timeout. The workers stall if
    one of them owes an answer, but all of them have been waiting for longer than the shortest
    timeout. A stall means that a worker has missed a message or does not wake up, for example
    because it was stopped (SIGSTOP) while it waited.

    Args:
        workers: the workers to watch. A worker that writes several lines of `board` appears once
            for each line, under the same name.
        board: the counters of the workers.
        stand_back: True if the workers have a low priority. The time that they wait for a core,
            summed over the workers, then does not count towards their timeouts, except that at
            least a tenth of the elapsed time always counts.

    Attributes:
        failed: a connection that becomes readable when a worker has failed.
        hang: the error for a hang or a stall; None if there is none.
    """

    def __init__(self, workers: Iterable[Worker], board: Board, stand_back: bool = False) -> None:
        self._workers = list(workers)
        self._board = board
        self._stand_back = stand_back
        self._core_wait_s = self._total_core_wait_s()
        self._since, self._busy_s = board.since(), board.busy_s()
        # Seconds since each worker last began or finished something. They are summed over the
        # checks, with a limit for each check, so that a paused run (Ctrl-Z) does not count as hung.
        self._still_s = np.zeros(len(self._since))
        self._dead: list[Worker] = []
        self.hang: WorkerError | None = None
        self._closing, self._close = CONTEXT.Pipe(duplex=False)
        self.failed, self._fail = CONTEXT.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of a failed worker, if there is one; for the main thread only.

        Raises:
            HtsrlError: a worker has failed.
        """
        if self.hang is not None:
            raise self.hang
        if self._dead:
            raise _cause_of_death(self._dead)

    def receive(self, worker: Worker, command: str) -> Any:
        """Waits for the worker's answer to `command` and returns it; for the main thread only.

        Raises:
            HtsrlError: this or another worker has raised an error, has died, or hangs.
        """
        if worker.control not in connection.wait([worker.control, self.failed]):
            self.check()
        try:
            answer, *results = worker.control.recv()
        except (EOFError, OSError):
            # The worker died without a message; the watcher finds out how.
            connection.wait([self.failed])
            self.check()
            raise
        worker.owes = False
        if answer == "error":
            raise _as_error(worker, results[0])
        assert answer == command, (answer, command)
        return results[0] if results else None

    def stop(self) -> None:
        """Ends the thread; workers that end later do not count as failed."""
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
        # While no worker owes an answer, the timeout of the next command has not begun.
        resting = (since == 0) & (not any(worker.owes for worker in self._workers))
        counted_s = max(elapsed_s - self._new_core_wait_s(), 0.1 * elapsed_s)
        self._still_s = np.where(moved | resting, 0.0, self._still_s + counted_s)
        self._since, self._busy_s = since, busy_s

    def _new_core_wait_s(self) -> float:
        """Returns the seconds that all workers together waited for a core since the last call.

        The result is 0 unless the workers have a low priority (`stand_back`).
        """
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
        """Returns the error for a worker whose work exceeds its timeout, if there is one."""
        for worker in self._workers:
            still_s = self._still_s[worker.index]
            if self._since[worker.index] and still_s > worker.timeout_s:
                return WorkerError(
                    f"{worker.name} hangs: busy with one operation for {still_s:.1f} s, more than "
                    f"its timeout of {worker.timeout_s:g} s; if it is only slow, raise "
                    f"env.step_timeout_s (env steps) or actors.timeout_s (forward passes); "
                    f"its stack:\n"
                    f"{_ask_for_stack(worker) or NO_STACK}"
                )
        return None

    def _find_stall(self) -> WorkerError | None:
        """Returns the error for a stall, in which all workers wait although one owes an answer.

        Each worker is asked for its stack. The error names the workers that do not answer. If all
        workers answer, it names all of them. The result is None if there is no stall.
        """
        still_s = float(self._still_s.min())
        if self._since.any() or still_s <= self._stall_timeout_s():
            return None
        if not any(worker.owes and not worker.control.poll() for worker in self._workers):
            return None
        stacks = {worker.name: _ask_for_stack(worker) for worker in self._workers}
        deaf = {name: NO_STACK for name, stack in stacks.items() if not stack}
        blamed = deaf or stacks
        where = "\n".join(f"stack of {name}:\n{stack}" for name, stack in blamed.items())
        return WorkerError(
            f"{', '.join(blamed)} hang{'' if len(blamed) > 1 else 's'}: there is work to do, but "
            f"no worker has done anything for {still_s:.1f} s\n{where}"
        )

    def _stall_timeout_s(self) -> float:
        if (self._busy_s == 0).any():
            return START_TIMEOUT_S
        return min(worker.timeout_s for worker in self._workers)


def _cause_of_death(dead: list[Worker]) -> HtsrlError:
    """Returns the error that one of the dead workers sent before it died.

    If none of them sent an error, the result is an error that says how the first one ended.
    """
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
    """Returns a hung worker's stack; empty if it does not answer.

    In a process, `faulthandler` writes the stack even while C code runs.
    """
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
