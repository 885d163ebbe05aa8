"""The runners: how the roles are scheduled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Runner:
    """The way in which executors, actors and the learner take turns.

    Attributes:
        lag: version of the parameters that an update starts from, minus that of its data.
        lockstep: actors wait until every column has asked before they serve any.
        inline: all roles run by turns in the main thread: there are no workers.
        equals: the runner whose results are bit-identical; it stands for both in hashes.
    """

    lag: int
    lockstep: bool
    inline: bool
    equals: str


RUNNERS: Mapping[str, Runner] = {
    "hts": Runner(lag=1, lockstep=False, inline=False, equals="hts"),
    "serial": Runner(lag=1, lockstep=False, inline=True, equals="hts"),
    "sync": Runner(lag=0, lockstep=True, inline=False, equals="sync"),
}
