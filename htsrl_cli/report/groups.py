"""Groups of runs that differ only in the seed, and the keys that tell groups apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from htsrl_cli.config.identity import changes_no_result
from htsrl_cli.config.wording import shown
from htsrl_cli.report.runs import FINAL_SCORE, RECENT_SCORE, Curve, StoredRun
from htsrl_cli.tracking.bootstrap import Array, confidence_interval

# These keys come first in labels if they differ, because readers look for them.
_FIRST = ("algo.name", "runner.name", "actors.precision", "learner.precision")
_NUM_POINTS = 200


@dataclass(frozen=True)
class Group:
    """Runs of an environment that differ only in the seed.

    Attributes:
        environment: name of the environment.
        label: keys and values that tell the group from others of its environment.
        runs: runs of the group.
        curves: learning curve of `score` for each run.
        score: name of the score that is compared; all runs of the environment have it.
    """

    environment: str
    label: str
    runs: tuple[StoredRun, ...]
    curves: tuple[Curve, ...]
    score: str

    def final(self) -> tuple[float, float | None, float | None]:
        """Returns the mean of the runs' last scores, and its confidence interval (low, high).

        `low` and `high` are None for a single run.
        """
        scores = np.array([curve.scores[-1] for curve in self.curves])
        if len(scores) < 2:
            return float(scores[0]), None, None
        low, high = confidence_interval(scores)
        return float(scores.mean()), float(low), float(high)

    def curve(self, axis: str) -> tuple[Array, Array, Array | None, Array | None]:
        """Returns the mean learning curve: positions, mean, low and high, each [N].

        The curve covers the env steps at which all runs have a score. `low` and `high` bound the
        confidence interval of the mean, and are None for a single run.

        Args:
            axis: `env_steps`, or `seconds` for the mean time at which the runs reached them.
        """
        starts, ends = zip(*((c.env_steps[0], c.env_steps[-1]) for c in self.curves), strict=True)
        steps = np.linspace(max(starts), max(*starts, min(ends)), _NUM_POINTS)
        places = [np.interp(steps, c.env_steps, getattr(c, axis)) for c in self.curves]
        scores = np.array([np.interp(steps, c.env_steps, c.scores) for c in self.curves])
        x = np.mean(places, axis=0)
        if len(scores) < 2:
            return x, scores[0], None, None
        return x, scores.mean(axis=0), *confidence_interval(scores)


def select(found: Mapping[Path, StoredRun | None]) -> tuple[list[StoredRun], list[str]]:
    """Selects the runs to compare; returns them, and the others as `FOLDER (REASON)`.

    Of runs with the same configuration and seed, only the one with the most env steps is compared.

    Args:
        found: runs by folder; None for a run without a score.
    """
    loaded = [run for run in found.values() if run is not None]
    keys = sorted({key for run in loaded for key in run.treatment})

    def identity(run: StoredRun) -> tuple[str, ...]:
        return str(run.config.get("seed")), *_values(run, keys)

    longest: dict[tuple[str, ...], StoredRun] = {}
    for candidate in sorted(loaded, key=lambda run: -run.env_steps):
        longest.setdefault(identity(candidate), candidate)
    scores = _scores(longest.values())
    runs, left_out = [], []
    for folder, run in found.items():
        if run is None:
            left_out.append(f"{folder} (no episode has ended yet)")
        elif (equal := longest[identity(run)]) is not run:
            left_out.append(f"{folder} (same configuration and seed as {equal.folder})")
        elif scores[run.environment] not in run.curves:
            left_out.append(f"{folder} (no episode has ended yet, and others were not evaluated)")
        else:
            runs.append(run)
    return runs, left_out


def group(runs: Sequence[StoredRun]) -> list[Group]:
    """Groups runs: by environment, then by configuration, each in order of first appearance."""
    groups = []
    for environment, score in _scores(runs).items():
        own = [run for run in runs if run.environment == environment]
        keys = _telling_keys(own)
        names = dict.fromkeys(_values(run, keys) for run in own)
        for values in names:
            members = tuple(run for run in own if _values(run, keys) == values)
            treatment = members[0].treatment
            label = " ".join(f"{key}={_short(treatment[key])}" for key in keys if key in treatment)
            curves = tuple(run.curves[score] for run in members)
            groups.append(Group(environment, label or environment, members, curves, score))
    return groups


def _scores(runs: Collection[StoredRun]) -> dict[str, str]:
    """Returns the name of the score that all runs of an environment have, by environment.

    Environments are in order of first appearance.
    """
    return {run.environment: FINAL_SCORE for run in runs} | {
        run.environment: RECENT_SCORE for run in runs if FINAL_SCORE not in run.curves
    }


def _telling_keys(runs: Sequence[StoredRun]) -> list[str]:
    """Returns the keys that tell groups apart: those of `_FIRST`, then others that differ.

    An algorithm's defaults follow from its name and are left out.
    """
    chosen: list[str] = []
    for key in _FIRST:
        if _num_groups(runs, [*chosen, key]) > _num_groups(runs, chosen):
            chosen.append(key)
    alike: dict[tuple[str, ...], list[StoredRun]] = {}
    for run in runs:
        alike.setdefault(_values(run, chosen), []).append(run)
    keys = sorted({key for run in runs for key in run.treatment})
    # Keys that change results come before keys that only change the speed.
    keys.sort(key=changes_no_result)
    return chosen + [
        key
        for key in keys
        if key not in chosen and any(_num_groups(members, [key]) > 1 for members in alike.values())
    ]


def _num_groups(runs: Sequence[StoredRun], keys: Sequence[str]) -> int:
    return len({_values(run, keys) for run in runs})


def _short(value: Any) -> str:
    """Returns a value as text; four digits suffice to tell the values of a search apart."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _values(run: StoredRun, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(run.treatment.get(key)) for key in keys)
