"""Measures how busy the roles are during an interval."""

from __future__ import annotations

import time

from htsrl_cli.workers.board import Board


class LoadMeter:
    """Times the roles from the moment it is made.

    Args:
        num_steppers: lines of the board that are executors'; the others are actors'.
    """

    def __init__(self, board: Board, num_steppers: int) -> None:
        self._board = board
        self._num_steppers = num_steppers
        self.started_at = time.monotonic()
        self._busy_s = board.busy_s()
        self._num_passes = board.num_passes()

    def seconds(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self.started_at

    def shares(self, learner_s: float) -> dict[str, float]:
        """Returns the seconds that each role was busy and waiting, on average over its workers.

        Besides, how long it took to fill the slot, and the number of forward passes.
        """
        wall_s, split = self.seconds(), self._num_steppers
        done_s = self._board.busy_s() - self._busy_s
        busy = {
            "executors": float(done_s[:split].mean()),
            "actors": float(done_s[split:].mean()),
            "learner": learner_s,
        }
        return {
            **{f"{role}_busy": busy_s for role, busy_s in busy.items()},
            **{f"{role}_waiting": wall_s - busy_s for role, busy_s in busy.items()},
            "collecting": float(self._board.left_at()[:split].max()) - self.started_at,
            "inference_passes_per_second": self._board.num_passes() - self._num_passes,
        }
