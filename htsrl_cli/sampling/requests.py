"""The requests that executors send to actors, and their encoding as numbers for a pipe.

A request is a pair (column, step), where T is the number of env steps in a rollout:

    choose an action for the observation in row t     step = t, from 0 to T - 1
    compute the value of the observation in row T     step = T
    compute the value of the column's `final_obs`,    step = -1 - t
    after env step t has truncated an episode

An answer is the index of the column. The results are in the slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Request = tuple[int, int]
# Numbers in a request.
WIDTH = 2


def final_request(column: int, t: int) -> Request:
    """Returns the request for the value of `final_obs`, after env step `t` truncated an episode."""
    return column, -1 - t


def is_final(step: Any) -> Any:
    """Returns True where a request is for a final observation; `step` is a number or an array."""
    return step < 0


def truncating_step(step: Any) -> Any:
    """Returns t, the env step that truncated the episode; `step` is a number or an array."""
    return -1 - step


def encode(requests: Iterable[Request]) -> list[int]:
    """Encodes requests as numbers for a pipe."""
    return [number for request in requests for number in request]


def decode(numbers: Sequence[int]) -> list[Request]:
    """Decodes numbers that `encode` returned."""
    return list(zip(numbers[::WIDTH], numbers[1::WIDTH], strict=True))
