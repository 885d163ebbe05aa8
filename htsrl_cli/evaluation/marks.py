"""Marks of what an evaluation is doing, from which a watcher tells a hang from work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from htsrl_cli.workers.board import Board

# Lines of the board. Exactly one of them is busy during an evaluation.
OTHER, ENV, PASS = range(3)
NUM_LINES = 3


class Marks:
    """The marks of one evaluation on a board.

    Args:
        board: a board of `NUM_LINES` lines; None makes one that nothing watches.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board(NUM_LINES)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Marks a whole evaluation, as `OTHER` unless `env` or `forward_pass` is entered."""
        self._board.enter(OTHER)
        try:
            yield
        finally:
            self._board.leave(OTHER)

    @contextmanager
    def env(self) -> Iterator[None]:
        """Marks an env step, a reset, or building an environment."""
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
