"""Tests of the progress bar on a real pseudo-terminal: what the screen shows after every event."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness

# Reads a command from standard input, carries it out, and answers with a line on descriptor 3.
CHILD = """
import logging, os, sys
from htsrl_cli.tracking.progress import Status, TerminalBar
logging.basicConfig(stream=sys.stderr, level="INFO", format="%(message)s")
bar = TerminalBar(sys.stderr)
commands = os.fdopen(int(sys.argv[1]))
for line in commands:
    verb, _, words = line.strip().partition(" ")
    if verb == "barrier":
        bar.barrier(Status(int(words), 4_000_000, 512.5, 21.5, 3_600.0, final_metric=20.25))
    elif verb == "log":
        logging.info(words)
    elif verb == "close":
        bar.close()
    os.write(int(sys.argv[2]), b".")
"""
BAR = "━"
STATUS = "env steps, 512/s, return 21.5, evaluated 20.25, "


class Screen:
    """The screen of a terminal that wraps its rows again when its width changes, as most do."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.cursor_shown = True
        self._rows: list[list[str]] = [[]]
        # True for a row that continues the row above.
        self._wrapped = [False]
        self._y = self._x = 0

    @property
    def rows(self) -> list[str]:
        """The rows that hold something."""
        return [text for row in self._rows if (text := "".join(row).rstrip())]

    def feed(self, text: str) -> None:
        """Shows what a program writes; fails for a control code that is not known."""
        for code in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|.", text, re.DOTALL):
            if code == "\r":
                self._x = 0
            elif code == "\n":
                self._down()
            elif code == "\x1b[2K":
                self._rows[self._y] = []
                if self._y + 1 < len(self._rows):
                    self._wrapped[self._y + 1] = False
            elif code == "\x1b[1A":
                self._y -= 1
            elif code in ("\x1b[?25h", "\x1b[?25l"):
                self.cursor_shown = code.endswith("h")
            elif not re.fullmatch(r"\x1b\[[0-9;]*m", code):
                assert code.isprintable(), repr(code)
                self._put(code)

    def resize(self, width: int) -> None:
        """Wraps all paragraphs again; the cursor stays behind the same character."""
        paragraphs: list[list[str]] = []
        cursor = (0, 0)
        for y, row in enumerate(self._rows):
            if not self._wrapped[y]:
                paragraphs.append([])
            if y == self._y:
                cursor = len(paragraphs) - 1, len(paragraphs[-1]) + self._x
            paragraphs[-1] += row
        self.width, self._rows, self._wrapped = width, [], []
        for number, paragraph in enumerate(paragraphs):
            parts = [paragraph[x : x + width] for x in range(0, max(1, len(paragraph)), width)]
            if number == cursor[0]:
                part = min(cursor[1] // width, len(parts) - 1)
                self._y, self._x = len(self._rows) + part, cursor[1] - part * width
            self._wrapped += [part > 0 for part in range(len(parts))]
            self._rows += parts

    def _put(self, letter: str) -> None:
        if self._x >= self.width:
            self._down()
            self._wrapped[self._y] = True
            self._x = 0
        row = self._rows[self._y]
        row += " " * (self._x + 1 - len(row))
        row[self._x] = letter
        self._x += 1

    def _down(self) -> None:
        self._y += 1
        if self._y == len(self._rows):
            self._rows.append([])
            self._wrapped.append(False)


class Terminal:
    """A program with a progress bar on a pseudo-terminal."""

    def __init__(self, width: int) -> None:
        self._master, slave = pty.openpty()
        self.screen = Screen(width)
        self.resize(width)
        ours, self._commands = os.pipe()
        self._answers, theirs = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(ours), str(theirs)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            pass_fds=(ours, theirs),
            env={**harness.environment(), "TERM": "xterm-256color"} | {"COLUMNS": ""},
        )
        for fd in (slave, ours, theirs):
            os.close(fd)

    def send(self, command: str) -> None:
        """Makes the program carry out a command, and shows what it writes."""
        os.write(self._commands, f"{command}\n".encode())
        answer = b""
        while not answer or select.select([self._master], [], [], 0)[0]:
            ready, _, _ = select.select([self._master, self._answers], [], [])
            if self._answers in ready:
                answer = os.read(self._answers, 1)
                assert answer, "the program has ended"
            if self._master in ready:
                self.screen.feed(os.read(self._master, 65536).decode())

    def type(self, keys: str) -> None:
        """Types keys, which the terminal echoes."""
        os.write(self._master, keys.encode())
        self.screen.feed(os.read(self._master, 65536).decode())

    def resize(self, width: int) -> None:
        """Changes the width of the window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        self.screen.resize(width)

    def end(self) -> None:
        """Ends the program."""
        os.close(self._commands)
        self._process.wait()
        os.close(self._master)
        os.close(self._answers)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal(120)
    yield opened
    opened.end()


def bars(screen: Screen) -> list[str]:
    return [row for row in screen.rows if BAR in row or STATUS[:8] in row]


@pytest.mark.parametrize("width", [140, 60, 45])
def test_the_bar_is_one_row_at_any_width(terminal: Terminal, width: int) -> None:
    terminal.resize(width)
    terminal.send("barrier 1000000")
    terminal.send("log above")
    assert terminal.screen.rows == ["above", *bars(terminal.screen)]
    (row,) = bars(terminal.screen)
    assert row.startswith(f"{BAR * 5}")
    assert " 25% 1,000,000/" in row
    assert row.endswith(f"{STATUS}1:37:34 left, 1:00:00 so far" if width == 140 else "…")
    cursor = [terminal.screen.cursor_shown]
    terminal.send("close")
    cursor.append(terminal.screen.cursor_shown)
    assert cursor == [False, True]
    assert terminal.screen.rows == ["above", row]


def test_a_narrower_window_leaves_no_part_of_the_bar(terminal: Terminal) -> None:
    terminal.send("log first")
    terminal.send("barrier 1000000")
    terminal.resize(50)
    assert len(terminal.screen.rows) == 4
    terminal.send("barrier 2000000")
    first, row = terminal.screen.rows
    assert (first, " 50% 2,000,000/" in row) == ("first", True)
    terminal.resize(30)
    terminal.send("log second")
    assert terminal.screen.rows == ["first", "second", *bars(terminal.screen)]


def test_an_echoed_interrupt_leaves_no_second_bar(terminal: Terminal) -> None:
    terminal.resize(80)
    terminal.send("barrier 1000000")
    terminal.type("\x03")
    assert terminal.screen.rows[0].endswith("…^C")
    terminal.type("\x03")
    terminal.send("log stopping")
    assert terminal.screen.rows == ["stopping", *bars(terminal.screen)]
    assert "^C" not in bars(terminal.screen)[0]
    assert len(bars(terminal.screen)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_any_events_leave_the_log_and_one_bar(terminal: Terminal, seed: int) -> None:
    rng = random.Random(seed)
    logged = []
    terminal.send("barrier 0")
    for t in range(120):
        event = rng.choice(["barrier", "log", "type", "resize"])
        if event == "resize":
            for _ in range(rng.randrange(1, 4)):
                terminal.resize(rng.randrange(30, 160))
            continue
        if event == "type":
            # In a row that is wrapped already, the two letters might begin one row more.
            terminal.send(f"barrier {t * 30_000}")
            terminal.type("\x03")
        if event == "log":
            logged.append(f"line {t}")
            terminal.send(f"log line {t}")
        else:
            terminal.send(f"barrier {t * 30_000}")
        assert terminal.screen.rows[:-1] == logged
        assert BAR in terminal.screen.rows[-1]


def test_the_screen_wraps_as_terminals_do() -> None:
    screen = Screen(6)
    screen.feed("abcdefgh\r\nxy")
    assert screen.rows == ["abcdef", "gh", "xy"]
    screen.resize(4)
    assert screen.rows == ["abcd", "efgh", "xy"]
    screen.feed("z\r\x1b[1A\x1b[2KE")
    assert screen.rows == ["abcd", "E", "xyz"]
    screen.resize(8)
    assert screen.rows == ["abcdE", "xyz"]


def test_no_bar_without_a_terminal(tmp_path: Path) -> None:
    from htsrl_cli.tracking.progress import NoBar, open_display

    with open(tmp_path / "log", "w") as file:
        assert isinstance(open_display(file), NoBar)
