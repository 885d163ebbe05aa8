"""The codec of requests: what executors ask of actors, as numbers for a pipe.

A request is a pair of numbers, a column and a step:

    act on row t of the column           t in 0 ... T - 1
    value row T, the slot's last         t = T
    value the column's `final_obs`,      -1 - t
    where step t truncated an episode

The answer is the column's number; what was asked for stands in the slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Request = tuple[int, int]
# Numbers in a request.
WIDTH = 2


def final_request(column: int, t: int) -> Request:
    """Returns the request to value the last observation of an episode that step `t` truncated."""
    return column, -1 - t


def is_final(step: Any) -> Any:
    """Returns True where a request is for a final observation; for a number or an array."""
    return step < 0


def truncating_step(step: Any) -> Any:
    """Returns the env step of requests for final observations; for a number or an array."""
    return -1 - step


def encode(requests: Iterable[Request]) -> list[int]:
    """Returns requests as the numbers that go through a pipe."""
    return [number for request in requests for number in request]


def decode(numbers: Sequence[int]) -> list[Request]:
    """Returns the requests that `encode` made numbers of."""
    return list(zip(numbers[::WIDTH], numbers[1::WIDTH], strict=True))
