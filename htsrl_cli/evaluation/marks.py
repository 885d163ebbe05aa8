"""Marks what an evaluation is busy with, by which a watcher tells a hang from work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from htsrl_cli.workers.board import Board

# Lines of the board. While an evaluation is under way, one of them is busy.
OTHER, ENV, PASS = range(3)
NUM_LINES = 3


class Marks:
    """Writes the marks of one evaluation.

    Args:
        board: with `NUM_LINES` lines; one that nobody watches if None.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board(NUM_LINES)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Marks all of it: checkpoints, networks and videos are what neither of the others is."""
        self._board.enter(OTHER)
        try:
            yield
        finally:
            self._board.leave(OTHER)

    @contextmanager
    def env(self) -> Iterator[None]:
        """Marks an env step, a reset, or the making of an environment."""
        yield from self._instead(ENV)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Marks a forward pass."""
        yield from self._instead(PASS)

    def _instead(self, line: int) -> Iterator[None]:
        self._board.leave(OTHER)
        self._board.enter(line)
        try:
            yield
        finally:
            self._board.leave(line)
            self._board.enter(OTHER)
