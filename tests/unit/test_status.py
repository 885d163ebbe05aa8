"""Tests of the progress of a run, in words and as a bar."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from htsrl_cli.tracking.progress import Status, TerminalBar
from tests.unit.run_logs import feed, lines, open_log, play


def test_status_in_words() -> None:
    steps = "20,480/10,000,000 env steps, 712/s"
    times = "3:53:28 left, 0:00:29 so far"
    status = Status(20_480, 10_000_000, 712.4, 3.456789, 28.7)
    assert str(status) == f"{steps}, return 3.457, {times}"
    evaluated = Status(20_480, 10_000_000, 712.4, 3.456789, 28.7, 5.4321)
    assert str(evaluated) == f"{steps}, return 3.457, evaluated 5.432, {times}"
    assert str(Status(0, 10, 0.0, None, 0.0)) == "0/10 env steps, 0/s, 0:00:00 so far"


def test_plain_progress_is_one_logged_line_for_each_line_of_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        play(tmp_path, 11)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(lines(tmp_path))
    assert messages[0].startswith("256/10,000 env steps, ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_restores_the_terminal_when_the_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def run() -> None:
        with open_log(tmp_path) as log:
            feed(log, 0)
            assert "\x1b[?25l" in terminal.getvalue(), "the cursor is hidden while it runs"
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run()
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")
    assert "64/10,000 env steps" in terminal.getvalue()
    assert sys.stderr is terminal


def test_the_bar_shows_the_latest_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    bar = TerminalBar(terminal)
    bar.barrier(Status(1_000, 4_000, 500.0, 1.5, 2.0))
    bar.barrier(Status(2_000, 4_000, 500.0, 2.5, 4.0))
    bar.close()
    *_, last = terminal.getvalue().split("\x1b[2K")
    assert "50%" in last
    assert "2,000/4,000 env steps, 500/s, return 2.5, 0:00:04 left, 0:00:04 so far" in last


def test_a_narrow_terminal_keeps_the_bar_and_the_percentage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    bar = TerminalBar(terminal)
    bar.barrier(Status(2_000_000, 4_000_000, 500.0, 2.5, 4000.0))
    bar.close()
    *_, last = terminal.getvalue().split("\x1b[2K")
    assert "━" * 10 in last
    assert "50%" in last
    assert "2,000,000/4,000,000 env" in last
    assert "…" in last


def test_log_messages_appear_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    bar = TerminalBar(terminal)
    bar.barrier(Status(1_000, 4_000, 500.0, 1.5, 2.0))
    logging.getLogger("htsrl_cli.test").warning("a message")
    bar.close()
    before, _, after = terminal.getvalue().rpartition("a message")
    assert before.endswith("\x1b[2K"), "the bar is erased before the message"
    assert after.startswith("\n")
    assert "25%" in after, "the bar is drawn again below the message"
    assert handler.stream is terminal
