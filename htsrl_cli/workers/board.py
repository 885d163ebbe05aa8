"""Shared heartbeat and load counters, one line per worker.

The watcher reads them to detect hangs, and the runner reads them to report load. This module
imports neither torch nor hydra.
"""

from __future__ import annotations

import time

from htsrl_cli.storage.memory import ALIGNMENT, Array, Layout, SharedArrays

# Cells of a worker's line: when its current work began (0 while it waits), its total busy seconds,
# when it last began to wait, and its number of forward passes.
_SINCE, _BUSY_S, _LEFT_AT, _PASSES = range(4)


class Board:
    """Times and counts of the work of executors and actors; each of them writes its own line.

    The evaluator has a board of its own, with several lines; see `htsrl_cli.evaluation.marks`.
    Times are in seconds of `time.monotonic`, which all processes of a machine share.
    """

    def __init__(self, num_workers: int) -> None:
        # Each line fills a cache line of its own, because workers write on different cores.
        layout: Layout = {"lines": ((num_workers, ALIGNMENT // 8), "float64")}
        self._memory = SharedArrays(layout)

    def enter(self, worker: int) -> None:
        """Marks the start of work that may hang.

        If the worker was already busy, the time since its last `enter` is added to its busy time.
        """
        now = time.monotonic()
        self._account(worker, now, since=now)

    def leave(self, worker: int) -> None:
        """Marks that a worker begins to wait; adds the time since `enter` to its busy time."""
        now = time.monotonic()
        self._account(worker, now, since=0.0)
        self._memory["lines"][worker, _LEFT_AT] = now

    def count_pass(self, worker: int) -> None:
        """Counts a forward pass of a worker."""
        self._memory["lines"][worker, _PASSES] += 1

    def _account(self, worker: int, now: float, since: float) -> None:
        line = self._memory["lines"][worker]
        if line[_SINCE]:
            line[_BUSY_S] += now - line[_SINCE]
        line[_SINCE] = since

    def since(self) -> Array:
        """Returns the start of each worker's current work, float64 [workers]; 0 while it waits."""
        return self._memory["lines"][:, _SINCE].copy()

    def left_at(self) -> Array:
        """Returns the time when each worker last began to wait, float64 [workers]; 0 if never."""
        return self._memory["lines"][:, _LEFT_AT].copy()

    def num_passes(self) -> int:
        """Returns the total number of forward passes of all workers."""
        return int(self._memory["lines"][:, _PASSES].sum())

    def busy_s(self) -> Array:
        """Returns the total busy seconds of each worker, float64 [workers]."""
        return self._memory["lines"][:, _BUSY_S].copy()
