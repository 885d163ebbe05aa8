"""The progress display of a run: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes:
        env_steps: env steps so far.
        total_steps: env steps at the end of the run.
        env_steps_per_second: the mean rate since this process began; 0 before it is known.
        mean_return: mean raw return of the last 100 games; None before a game has ended.
    """

    env_steps: int
    total_steps: int
    env_steps_per_second: float
    mean_return: float | None

    def __str__(self) -> str:
        parts = [f"{self.env_steps:,}/{self.total_steps:,} env steps"]
        parts.append(f"{self.env_steps_per_second:,.0f}/s")
        if self.mean_return is not None:
            parts.append(f"return {self.mean_return:.4g}")
        if self.env_steps_per_second > 0:
            left_s = max(0, self.total_steps - self.env_steps) / self.env_steps_per_second
            parts.append(f"{timedelta(seconds=round(left_s))} left")
        return ", ".join(parts)


class Display(Protocol):
    """A display of a run's status. The run closes its display even if the run fails."""

    def barrier(self, status: Status) -> None:
        """Shows the status at a barrier."""

    def line(self, status: Status) -> None:
        """Shows the status after a line of metrics has been written."""

    def close(self) -> None:
        """Restores the terminal."""


class TerminalBar:
    """A progress bar that is redrawn at every barrier.

    No thread redraws the bar between barriers. The bar hides the cursor until `close`.
    """

    def __init__(self, stream: TextIO) -> None:
        columns = (BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(file=stream), auto_refresh=False)
        self._task = self._bar.add_task("")
        self._bar.start()

    def barrier(self, status: Status) -> None:
        """Redraws the bar."""
        self._bar.update(
            self._task,
            completed=status.env_steps,
            total=status.total_steps,
            description=str(status),
            refresh=True,
        )

    def line(self, status: Status) -> None:
        """Does nothing: the bar already shows the status."""

    def close(self) -> None:
        """Leaves the bar on the screen and shows the cursor again."""
        self._bar.stop()


class PlainLines:
    """A display that logs the status after every line of metrics."""

    def barrier(self, status: Status) -> None:
        """Does nothing: logging every barrier would flood the log."""

    def line(self, status: Status) -> None:
        """Logs the status."""
        logger.info("%s", status)

    def close(self) -> None:
        """Does nothing: there is nothing to close."""


def open_display(stream: TextIO) -> Display:
    """Returns a progress bar if `stream` is a terminal, otherwise a display of plain log lines."""
    return TerminalBar(stream) if stream.isatty() else PlainLines()
