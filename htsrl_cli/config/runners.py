"""Runners: schedules of executors, actors and the learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Runner:
    """Schedule of executors, actors and the learner.

    Attributes:
        lag: policy lag: the version that an update starts from, minus the version that acted.
        lockstep: actors wait until every column has asked before they serve any.
        inline: all roles take turns in the main thread; there are no workers.
        equals: name of the runner with bit-identical results that stands for both in hashes.
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
