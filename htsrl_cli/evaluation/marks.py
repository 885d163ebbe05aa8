"""The marks that show an evaluation's current operation, so that a watcher can detect hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from htsrl_cli.workers.board import Board

# Lines of the board. Exactly one line is busy at any time during an evaluation.
OTHER, ENV, PASS = range(3)
NUM_LINES = 3


class Marks:
    """The marks that an evaluation sets on a `Board`, to show a watcher its current operation.

    Args:
        board: a board with a line for each of the `NUM_LINES` kinds of operation; None to create a
            board that no watcher reads.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board(NUM_LINES)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Marks the `with` block as an evaluation.

        The board's line `OTHER` is busy during the block, except inside the blocks of `env` and
        `forward_pass`.
        """
        self._board.enter(OTHER)
        try:
            yield
        finally:
            self._board.leave(OTHER)

    @contextmanager
    def env(self) -> Iterator[None]:
        """Marks the `with` block as an env step, a reset, or the construction of an environment."""
        yield from self._instead(ENV)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Marks the `with` block as one or more forward passes."""
        yield from self._instead(PASS)

    def _instead(self, line: int) -> Iterator[None]:
        self._board.leave(OTHER)
        self._board.enter(line)
        try:
            yield
        finally:
            self._board.leave(line)
            self._board.enter(OTHER)
