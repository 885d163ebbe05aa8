"""The encoding of requests from executors to actors, as numbers for a pipe.

A request is a pair (column, step), where T is the number of env steps in a rollout:

    act on the observation of row t           step = t, from 0 to T - 1
    value the observation of the last row     step = T
    value the column's `final_obs`, from an   step = -1 - t
    episode truncated by env step t

An answer is the number of the column. The results are in the slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Request = tuple[int, int]
# Numbers in a request.
WIDTH = 2


def final_request(column: int, t: int) -> Request:
    """Returns the request to value the last observation of an episode truncated by env step `t`."""
    return column, -1 - t


def is_final(step: Any) -> Any:
    """Returns True where a request is for a final observation; `step` is a number or an array."""
    return step < 0


def truncating_step(step: Any) -> Any:
    """Returns t, the truncating env step, of final requests; `step` is a number or an array."""
    return -1 - step


def encode(requests: Iterable[Request]) -> list[int]:
    """Encodes requests as numbers for a pipe."""
    return [number for request in requests for number in request]


def decode(numbers: Sequence[int]) -> list[Request]:
    """Decodes numbers that `encode` returned."""
    return list(zip(numbers[::WIDTH], numbers[1::WIDTH], strict=True))
