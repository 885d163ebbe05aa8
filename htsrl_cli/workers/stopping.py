"""Stop signals: the first asks the run to end at its next barrier, the second ends it at once.

Slurm and submitit announce the end of a job's time by SIGUSR2. Where submitit has a handler for it,
which queues the job again, that is called once the checkpoint is written.
"""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType

from htsrl_cli.workers.process import STOP_SIGNALS

logger = logging.getLogger(__name__)

# Whoever stops a process may signal it and then its whole group, as timeout(1) does: signals
# that come so close together are one.
ONE_SIGNAL_S = 0.5


class StopSignals:
    """While entered, stop signals are noted instead of raised; main thread only.

    Args:
        grace_s: how long the interval under way may take after a signal.

    Attributes:
        signum: the signal that asked for a stop; None so far.
    """

    def __init__(self, grace_s: float) -> None:
        self.signum: int | None = None
        self._grace_s = grace_s
        self._signalled = float("inf")

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # A failure is reported instead.
        stopped = kind is None or issubclass(kind, SystemExit)
        if stopped and self.signum == signal.SIGUSR2 and callable(self._previous[signal.SIGUSR2]):
            signal.raise_signal(signal.SIGUSR2)

    def check(self) -> None:
        """Ends the run without a further checkpoint once the grace is over.

        Raises:
            SystemExit: with the exit status of the signal.
        """
        if time.monotonic() - self._signalled > self._grace_s:
            logger.warning(
                "the interval did not end within runner.stop_grace_s=%g; "
                "resume goes on from the last checkpoint",
                self._grace_s,
            )
            raise SystemExit(128 + (self.signum or 0))

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is not None:
            if now - self._signalled > ONE_SIGNAL_S:
                raise SystemExit(128 + signum)
            return
        self.signum, self._signalled = signum, now
        logger.info(
            "%s: stopping after this interval; a second signal stops at once",
            signal.Signals(signum).name,
        )
