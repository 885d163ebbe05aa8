"""The progress of a run: a log line for every line of metrics and, on a terminal, a bar."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.text import Text

_BAR_WIDTH = 20
# Columns to the right of the bar that stay free: the terminal shows a typed Ctrl-C there as `^C`.
_FREE_COLUMNS = 5


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
    messages to the terminal appear above the bar. If the terminal is closed, the bar is given up.
    """

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=stream)
        self._row = _Row()
        self._live = Live(self._row, console=console, auto_refresh=False)
        self._stream = stream
        self._handlers = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream
        ]
        # A hook that is pushed before `start` is popped after `stop`.
        console.push_render_hook(_Unwrapper(console, self._row))
        self._live.start()
        for handler in self._handlers:
            handler.setStream(FileProxy(console, stream))

    def barrier(self, status: Status) -> None:
        """Redraws the bar."""
        self._row.status = status
        with suppress(OSError):
            self._live.refresh()

    def close(self) -> None:
        """Leaves the bar on the screen and shows the cursor again."""
        for handler in self._handlers:
            handler.setStream(self._stream)
        with suppress(OSError):
            self._live.stop()
        self._live.console.pop_render_hook()


class _Row:
    """A bar, a percentage and a status, in one row of the terminal.

    On a narrow terminal, the end of the status is cut off.

    Attributes:
        status: the status to draw; None before there is one.
        num_cells: length of the row that was drawn last, in columns of the terminal.
    """

    def __init__(self) -> None:
        self.status: Status | None = None
        self.num_cells = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.status is None:
            return
        total, done = self.status.total_steps, self.status.env_steps
        percentage = (f" {100 * done / total:3.0f}% ", "progress.percentage")
        text = Text.assemble(percentage, str(self.status), no_wrap=True, end="")
        room = options.max_width - _BAR_WIDTH - _FREE_COLUMNS
        text.truncate(max(0, room), overflow="ellipsis")
        self.num_cells = _BAR_WIDTH + text.cell_len
        yield ProgressBar(total, done, _BAR_WIDTH)
        yield text


class _Unwrapper(RenderHook):
    """A hook that erases a row that the terminal has wrapped because it became narrower.

    Rich erases the last row only. Terminals that cut rows off instead of wrapping them lose as many
    rows of the log above the bar; `train.log` holds them.
    """

    def __init__(self, console: Console, row: _Row) -> None:
        self._console = console
        self._row = row

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Returns `renderables`, after control codes that erase the wrapped part of the row."""
        num_wrapped = max(0, self._row.num_cells - 1) // self._console.width
        erase = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        return [Control(*erase * num_wrapped), *renderables]


class NoBar:
    """The display of a run without a terminal, which needs no bar: its log shows the progress."""

    def barrier(self, status: Status) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def open_display(stream: TextIO) -> Display:
    """Returns a progress bar if `stream` is a terminal, otherwise a display that shows nothing."""
    return TerminalBar(stream) if stream.isatty() else NoBar()
