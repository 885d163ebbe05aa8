"""Groups of comparable runs, and the keys that tell groups apart."""

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

# Keys that come first in labels if they differ between groups, because readers look for them.
_FIRST = ("algo.name", "runner.name", "actors.precision", "learner.precision")
_NUM_POINTS = 200


@dataclass(frozen=True)
class Group:
    """Runs of one environment with equal `StoredRun.treatment`, for example with different seeds.

    Attributes:
        environment: name of the environment.
        label: keys and values that tell the group from the other groups of its environment; the
            environment's name if no key differs.
        runs: the group's runs.
        curves: learning curve of `score` for each run, in the order of `runs`.
        score: name of the score that is compared, which all runs of the environment have.
    """

    environment: str
    label: str
    runs: tuple[StoredRun, ...]
    curves: tuple[Curve, ...]
    score: str

    def final(self) -> tuple[float, float | None, float | None]:
        """Returns the mean of the runs' last scores, and the ends of its confidence interval.

        The ends are None for a single run.
        """
        scores = np.array([curve.scores[-1] for curve in self.curves])
        if len(scores) < 2:
            return float(scores[0]), None, None
        low, high = confidence_interval(scores)
        return float(scores.mean()), float(low), float(high)

    def curve(self, axis: str) -> tuple[Array, Array, Array | None, Array | None]:
        """Returns the mean learning curve: positions, mean, low and high, each [N].

        The curve covers the range of env steps in which all runs have scores. `low` and `high` are
        the ends of the mean's confidence interval; both are None for a single run.

        Args:
            axis: the quantity of the positions: `env_steps`, or `seconds` (averaged over the runs).
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
    """Selects the runs to compare.

    Of runs with equal `treatment` and seed, only the run with the most env steps is compared.

    Args:
        found: runs by folder; None for a run without a score.

    Returns:
        The runs to compare, and a text `FOLDER (REASON)` for each run that is left out.
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
            left_out.append(
                f"{folder} (no training episode has ended yet, and other runs of {run.environment} "
                "were not evaluated)"
            )
        else:
            runs.append(run)
    return runs, left_out


def group(runs: Sequence[StoredRun]) -> list[Group]:
    """Groups the runs of each environment by `StoredRun.treatment`.

    Environments are in order of first appearance, and so are the groups of an environment.
    """
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
    """Returns the name of the score to compare, by environment.

    It is FINAL_SCORE if all runs of the environment have it, and RECENT_SCORE otherwise.
    Environments are in order of first appearance.
    """
    return {run.environment: FINAL_SCORE for run in runs} | {
        run.environment: RECENT_SCORE for run in runs if FINAL_SCORE not in run.curves
    }


def _telling_keys(runs: Sequence[StoredRun]) -> list[str]:
    """Returns the keys that tell groups apart: first those of `_FIRST`, then others.

    A key of `_FIRST` is included if it tells apart runs that the keys before it do not. Any other
    key is included if it differs between runs that are equal in all included keys of `_FIRST`.
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
    """Returns a value as text, with four significant digits for floats to keep labels short."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _values(run: StoredRun, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(run.treatment.get(key)) for key in keys)
