"""Micro-batches: the parts into which the rows of a minibatch are cut."""

from __future__ import annotations

from torch import Tensor


def num_micro_batches(num_rows: int, most: int) -> int:
    """Returns the number of micro-batches into which a minibatch is cut.

    A minibatch of at most `most / 2` rows is not cut. Otherwise, the number is rounded up to an
    even number if there are enough rows, so that two threads finish at the same time. The sizes of
    the micro-batches differ by at most one row, and no micro-batch is empty.

    Args:
        num_rows: number of rows in the minibatch.
        most: maximum number of rows in a micro-batch.
    """
    if 2 * num_rows <= most:
        return 1
    number = -(-num_rows // most)
    return min(number + number % 2, num_rows)


def cut(rows: Tensor, most: int, length: int = 1) -> list[Tensor]:
    """Cuts rows [n] into micro-batches; see `num_micro_batches`.

    Args:
        most: maximum number of rows in a micro-batch, unless a sequence is longer.
        length: number of rows of a sequence. `rows` are those of whole sequences in time-major
            order, and so are the rows of every micro-batch.
    """
    number = min(num_micro_batches(len(rows), most), len(rows) // length)
    return [part.flatten() for part in rows.view(length, -1).tensor_split(number, dim=1)]
