"""Shared heartbeat and load counters, one line a worker.

The runner and the watcher read them to find hangs and to report load. Free of torch and hydra.
"""

from __future__ import annotations

import time

from htsrl_cli.storage.memory import ALIGNMENT, Array, Layout, SharedArrays

# Of a worker's line, see `Board`.
_SINCE, _BUSY_S, _LEFT_AT, _PASSES = range(4)


class Board:
    """One line of counters for each worker, which alone writes it."""

    def __init__(self, num_workers: int) -> None:
        # A worker's numbers are a cache line of their own: the others write on other cores.
        layout: Layout = {"lines": ((num_workers, ALIGNMENT // 8), "float64")}
        self._memory = SharedArrays(layout)

    def enter(self, worker: int) -> None:
        """Marks that a worker starts something that may hang; the time before counts as busy."""
        now = time.monotonic()
        self._account(worker, now, since=now)

    def leave(self, worker: int) -> None:
        """Marks that a worker goes to wait; the time since `enter` counts as busy."""
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
        """Returns when each worker entered what it is busy with, [workers]; 0 while it waits."""
        return self._memory["lines"][:, _SINCE].copy()

    def left_at(self) -> Array:
        """Returns when each worker last went to wait, [workers], by `time.monotonic`."""
        return self._memory["lines"][:, _LEFT_AT].copy()

    def num_passes(self) -> int:
        """Returns the forward passes that all workers have made."""
        return int(self._memory["lines"][:, _PASSES].sum())

    def busy_s(self) -> Array:
        """Returns the seconds that each worker has been busy in all, [workers]."""
        return self._memory["lines"][:, _BUSY_S].copy()
