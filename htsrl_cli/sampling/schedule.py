"""The schedule of an asynchronous run: which unrolls each update used, and with which parameters.

An asynchronous run depends on timing in two ways only: the order in which unrolls arrive, and the
version of the parameters that served each request. `schedule.jsonl` records both. A replay imposes
them, and so repeats the run bit for bit.

The first line of the file is a header; each other line belongs to one update. Versions are stored
as runs: a pair [t, v] says that version v served the requests from step t on. `waited` says, for
each unroll, how many versions were published while it waited in the queue; a replay ignores it.

This module imports neither torch nor hydra, because executors import it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htsrl_cli.storage.memory import Array

SCHEDULE_FILE = "schedule.jsonl"

Runs = list[list[int]]


class Unroll(NamedTuple):
    """An unroll that an update used.

    Attributes:
        env: index of the environment.
        number: number of the unroll among the environment's unrolls, counted from 0.
        versions: for each player, the versions that served the requests of steps 0 to T, as runs.
        finals: triples [t, player, version]: this version computed the value of the player's last
            observation of the episode that env step t truncated.
    """

    env: int
    number: int
    versions: list[Runs]
    finals: list[list[int]]


def as_runs(versions: Array) -> Runs:
    """Returns versions [n] as runs: pairs of the first index and the version."""
    starts = np.flatnonzero(np.diff(versions, prepend=versions[0] - 1))
    return [[int(t), int(versions[t])] for t in starts]


def from_runs(runs: Runs, length: int) -> Array:
    """Returns the versions, int64 [length], that `as_runs` turned into runs."""
    versions = np.empty(length, np.int64)
    for t, version in runs:
        versions[t:] = version
    return versions


def _are_runs(runs: Runs, num_steps: int, update: int) -> bool:
    """Returns True if runs cover steps 0 to T with versions that exist at an update."""
    starts = [t for t, _ in runs]
    return (
        starts[:1] == [0]
        and starts == sorted(set(starts))
        and starts[-1] <= num_steps
        and all(type(version) is int and 0 <= version <= update for _, version in runs)
    )


@dataclass(frozen=True)
class Schedule:
    """A recorded schedule.

    Attributes:
        header: identity of the run that was recorded.
        updates: the unrolls of each update, in the order of the slot.
    """

    header: Mapping[str, Any]
    updates: Sequence[Sequence[Unroll]]

    @classmethod
    def load(cls, path: Path) -> Schedule:
        """Reads a schedule.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is damaged.
        """
        header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
        updates = []
        for number, line in enumerate(lines):
            content = json.loads(line)
            if content["update"] != number:
                raise ValueError(f"line {number + 2} belongs to update {content['update']}")
            updates.append([Unroll(*unroll) for unroll in content["unrolls"]])
        return cls(json.loads(header), updates)

    def check(self, num_envs: int, num_unrolls: int, num_steps: int, num_players: int) -> None:
        """Checks that a run of these sizes can replay the schedule.

        Args:
            num_unrolls: number of unrolls of an update.
            num_steps: T, the number of env steps of an unroll.

        Raises:
            ValueError: an update has other unrolls, or needs a version that does not exist yet.
        """
        numbers = [0] * num_envs
        for update, unrolls in enumerate(self.updates):
            fits = len(unrolls) == num_unrolls
            for unroll in sorted(unrolls, key=lambda unroll: unroll.number) if fits else ():
                fits &= unroll.env in range(num_envs) and unroll.number == numbers[unroll.env]
                fits &= len(unroll.versions) == num_players
                fits &= all(_are_runs(runs, num_steps, update) for runs in unroll.versions)
                fits &= all(
                    0 <= t < num_steps and 0 <= player < num_players and 0 <= version <= update
                    for t, player, version in unroll.finals
                )
                if fits:
                    numbers[unroll.env] += 1
            if not fits:
                raise ValueError(f"the unrolls of update {update} do not fit the run")

    @property
    def max_lag(self) -> int:
        """The largest policy lag of a request, in updates."""
        return max(
            (
                update - version
                for update, unrolls in enumerate(self.updates)
                for unroll in unrolls
                for *_, version in chain(*unroll.versions, unroll.finals)
            ),
            default=0,
        )

    def of_envs(self, envs: Sequence[int]) -> dict[tuple[int, int], Unroll]:
        """Returns the unrolls of some environments by (environment, number)."""
        wanted = set(envs)
        return {
            (unroll.env, unroll.number): unroll
            for unrolls in self.updates
            for unroll in unrolls
            if unroll.env in wanted
        }
