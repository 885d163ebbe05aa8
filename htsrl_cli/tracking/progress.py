"""The progress of a run: a log line for every line of metrics and, on a terminal, a bar."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column


@dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes:
        env_steps: env steps so far.
        total_steps: env steps at the end of the run.
        env_steps_per_second: the mean rate since this process began; 0 before it is known.
        mean_return: mean raw return of the last 100 games; None before a game has ended.
        seconds: wall-clock seconds of training so far.
        final_metric: final metric of the evaluated policies; None if there is none yet.
    """

    env_steps: int
    total_steps: int
    env_steps_per_second: float
    mean_return: float | None
    seconds: float
    final_metric: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.env_steps:,}/{self.total_steps:,} env steps"]
        parts.append(f"{self.env_steps_per_second:,.0f}/s")
        if self.mean_return is not None:
            parts.append(f"return {self.mean_return:.4g}")
        if self.final_metric is not None:
            parts.append(f"evaluated {self.final_metric:.4g}")
        if self.env_steps_per_second > 0:
            left_s = max(0, self.total_steps - self.env_steps) / self.env_steps_per_second
            parts.append(f"{timedelta(seconds=round(left_s))} left")
        parts.append(f"{timedelta(seconds=round(self.seconds))} so far")
        return ", ".join(parts)


class Display(Protocol):
    """A display of a run's status. The run closes its display even if the run fails."""

    def barrier(self, status: Status) -> None:
        """Shows the status at a barrier."""

    def close(self) -> None:
        """Restores the terminal."""


class TerminalBar:
    """A progress bar that is redrawn at every barrier.

    No thread redraws the bar between barriers. Until `close`, the cursor is hidden, and log
    messages to the terminal appear above the bar.
    """

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=stream)
        whole = Column(no_wrap=True)
        # On a narrow terminal, the end of the text is cut off, not the bar.
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            BarColumn(bar_width=20, table_column=whole),
            TaskProgressColumn(table_column=whole),
            TextColumn("{task.description}", table_column=rest),
        )
        self._bar = Progress(*columns, console=console, auto_refresh=False, expand=True)
        self._task = self._bar.add_task("")
        self._stream = stream
        self._handlers = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream
        ]
        self._bar.start()
        for handler in self._handlers:
            handler.setStream(FileProxy(console, stream))

    def barrier(self, status: Status) -> None:
        """Redraws the bar."""
        self._bar.update(
            self._task,
            completed=status.env_steps,
            total=status.total_steps,
            description=str(status),
            refresh=True,
        )

    def close(self) -> None:
        """Leaves the bar on the screen and shows the cursor again."""
        for handler in self._handlers:
            handler.setStream(self._stream)
        self._bar.stop()


class NoBar:
    """The display of a run without a terminal, which needs no bar: its log shows the progress."""

    def barrier(self, status: Status) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def open_display(stream: TextIO) -> Display:
    """Returns a progress bar if `stream` is a terminal, otherwise a display that shows nothing."""
    return TerminalBar(stream) if stream.isatty() else NoBar()
