"""The requests that executors send to actors, and their encoding as numbers for a pipe.

A request is a pair (column, step). If each environment takes T env steps in a rollout, the requests
are:

    choose an action for the observation in row t     step = t, from 0 to T - 1
    compute the value of the observation in row T     step = T
    compute the value of the column's `final_obs`,    step = -1 - t
    after env step t has truncated an episode

An answer is only the index of the column; the results are in the slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Request = tuple[int, int]
# Number of integers in a request.
WIDTH = 2


def final_request(column: int, t: int) -> Request:
    """Returns the request for the value of the column's `final_obs`.

    Args:
        column: the column.
        t: the env step that truncated the episode.
    """
    return column, -1 - t


def is_final(step: Any) -> Any:
    """Returns True if a request with this `step` is for the value of a `final_obs`.

    For an array of steps, the result is an array.
    """
    return step < 0


def truncating_step(step: Any) -> Any:
    """Returns the env step that truncated the episode, given the `step` of a `final_obs` request.

    For an array of steps, the result is an array.
    """
    return -1 - step


def encode(requests: Iterable[Request]) -> list[int]:
    """Returns a flat list of both numbers of each request, to be sent through a pipe."""
    return [number for request in requests for number in request]


def decode(numbers: Sequence[int]) -> list[Request]:
    """Returns the requests whose numbers are in a flat list; the inverse of `encode`."""
    return list(zip(numbers[::WIDTH], numbers[1::WIDTH], strict=True))
