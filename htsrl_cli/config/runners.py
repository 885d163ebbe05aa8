"""Runners: schedules that say when executors, actors and the learner work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Runner:
    """Schedule of executors, actors and the learner.

    Attributes:
        lag: policy lag, which is i - j: an update starts from version i of the parameters, and
            learns from a rollout that was collected with version j. None if it varies.
        lockstep: True if the actor waits for the requests of all columns before it serves any
            request.
        inline: True if executors, actors and the learner take turns in the main process; False if
            executors and actors are workers.
        equals: name of the runner that represents this runner in hashes; both runners give
            bit-identical results.
    """

    lag: int | None
    lockstep: bool
    inline: bool
    equals: str


RUNNERS: Mapping[str, Runner] = {
    "hts": Runner(lag=1, lockstep=False, inline=False, equals="hts"),
    "serial": Runner(lag=1, lockstep=False, inline=True, equals="hts"),
    "sync": Runner(lag=0, lockstep=True, inline=False, equals="sync"),
    "async": Runner(lag=None, lockstep=False, inline=False, equals="async"),
}
