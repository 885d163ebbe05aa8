"""A meter of how busy executors, actors and the learner are during a rollout."""

from __future__ import annotations

import time

from htsrl_cli.workers.board import Board


class LoadMeter:
    """A meter of how long executors, actors and the learner have worked since its creation.

    Args:
        board: counters of the work of executors and actors; the executors come first.
        num_steppers: number of executors.

    Attributes:
        started_at: `time.monotonic()` when the meter was created.
    """

    def __init__(self, board: Board, num_steppers: int) -> None:
        self._board = board
        self._num_steppers = num_steppers
        self.started_at = time.monotonic()
        self._busy_s = board.busy_s()
        self._num_passes = board.num_passes()

    def seconds(self) -> float:
        """Returns the seconds since `started_at`."""
        return time.monotonic() - self.started_at

    def shares(self, learner_s: float) -> dict[str, float]:
        """Returns the load since `started_at`: metrics by name, without the prefix `time/`.

        `<role>_busy` and `<role>_waiting` are seconds, averaged over the role's workers.
        `collecting` is the time from `started_at` until the slot was full, in seconds.
        `inference_passes_per_second` is not yet a rate but a number of forward passes. The log
        divides all values by the elapsed time.

        Args:
            learner_s: seconds that the learner was busy.
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
