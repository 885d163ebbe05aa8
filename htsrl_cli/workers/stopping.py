"""Stop signals: the first one stops the run at the next barrier, the second one immediately.

SIGHUP (a closed terminal) is ignored if it was ignored before, as under nohup. In a sweep on Slurm,
SIGUSR2 announces that the job's time limit is near. If submitit has installed a handler that
requeues the job, this handler is called after the run has stopped.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from types import FrameType

from htsrl_cli.errors import Stopped
from htsrl_cli.workers.process import STOP_SIGNALS

logger = logging.getLogger(__name__)

# The environment variable with the process id of a sweep.
LAUNCHER_VARIABLE = "HTSRL_LAUNCHER_PID"
# Seconds within which signals count as one: timeout(1), for example, signals the process and then
# its whole group.
ONE_SIGNAL_S = 0.5


def end_with_launcher() -> None:
    """Makes a job of `launcher=local` end when the sweep's own process ends (on Linux).

    submitit starts such jobs in processes that outlive the sweep. A run stops as after SIGTERM. A
    job that does not train yet, or no longer, ends at once. Does nothing in other processes: a job
    on Slurm is meant to outlive the command that submitted it.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None or os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    if sys.platform == "linux":
        try:
            ended = os.pidfd_open(int(launcher))
        except ProcessLookupError:
            os._exit(128 + signal.SIGTERM)
        threading.Thread(target=_stop_when, args=(ended,), daemon=True).start()


def _stop_when(ended: int) -> None:
    """Waits for the process of a pidfd to end, then stops this job."""
    select.select([ended], [], [])
    handler = signal.getsignal(signal.SIGTERM)
    if not isinstance(getattr(handler, "__self__", None), StopSignals):
        os._exit(128 + signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


class StopSignals:
    """A context manager that records the first stop signal and raises `Stopped` at the second.

    It can be used in the main thread only.

    Args:
        grace_s: seconds that the current rollout may still take after the first stop signal.

    Attributes:
        signum: number of the first stop signal; None until one arrives.
    """

    def __init__(self, grace_s: float) -> None:
        self.signum: int | None = None
        self._grace_s = grace_s
        self._signalled = float("inf")

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        if self._previous[signal.SIGHUP] is signal.SIG_IGN:
            # Started under nohup, the run is to survive its terminal.
            del self._previous[signal.SIGHUP]
        for number in self._previous:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # If the run has failed, the job must not be requeued.
        stopped = kind is None or issubclass(kind, Stopped)
        if stopped and self.signum == signal.SIGUSR2 and callable(self._previous[signal.SIGUSR2]):
            try:
                signal.raise_signal(signal.SIGUSR2)
            except SystemExit as error:
                # submitit's handler ends the process when it has requeued the job.
                raise Stopped(int(error.code or 0)) from error

    def check(self) -> None:
        """Ends the run without saving if `grace_s` seconds have passed since the first stop signal.

        Raises:
            Stopped: the time has passed; the exit code is 128 plus the signal's number.
        """
        if time.monotonic() - self._signalled > self._grace_s:
            logger.warning(
                "stopping at once: the rollout did not end within runner.stop_grace_s=%g seconds; "
                "a resume continues from the last checkpoint",
                self._grace_s,
            )
            raise Stopped(128 + (self.signum or 0))

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is not None:
            if now - self._signalled > ONE_SIGNAL_S:
                raise Stopped(128 + signum)
            return
        self.signum, self._signalled = signum, now
        logger.info(
            "%s: stopping after this rollout; a second signal stops the run at once",
            signal.Signals(signum).name,
        )
