"""Groups of comparable runs, and the keys that tell groups apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htsrl_cli.config.identity import changes_no_result
from htsrl_cli.config.wording import shown
from htsrl_cli.report.runs import FINAL_SCORE, RECENT_SCORE, Curve, StoredRun
from htsrl_cli.tracking.bootstrap import Array, confidence_interval

# Keys that come first in labels if they differ between groups, because readers look for them.
_FIRST = ("algo.name", "runner.name", "actors.precision", "learner.precision")
# Maximum number of points of a mean curve.
_MOST_POINTS = 200


class MeanCurve(NamedTuple):
    """The mean learning curve of a group at N times, sorted by env steps.

    Attributes:
        env_steps: env steps of training, [N].
        seconds: seconds of training, averaged over the runs, [N].
        mean: mean score, [N].
        low: lower end of the mean's confidence interval, [N]; None for a single run.
        high: upper end of the mean's confidence interval, [N]; None for a single run.
    """

    env_steps: Array
    seconds: Array
    mean: Array
    low: Array | None
    high: Array | None


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

    @cached_property
    def final(self) -> tuple[float, tuple[float, float] | None]:
        """The mean of the runs' last scores, and the ends of its confidence interval.

        The interval is None for a single run.
        """
        scores = np.array([curve.scores[-1] for curve in self.curves])
        if len(scores) < 2:
            return float(scores[0]), None
        low, high = confidence_interval(scores)
        return float(scores.mean()), (float(low), float(high))

    @cached_property
    def curve(self) -> MeanCurve:
        """The mean learning curve over the range of env steps in which all runs have scores.

        Its points are the env steps at which any run has a score. If there are more than
        `_MOST_POINTS` of them, the points are evenly spaced instead.
        """
        starts, ends = zip(*((c.env_steps[0], c.env_steps[-1]) for c in self.curves), strict=True)
        start, end = max(starts), max(*starts, min(ends))
        steps = np.unique(np.concatenate([c.env_steps for c in self.curves]))
        steps = steps[(steps >= start) & (steps <= end)]
        if len(steps) > _MOST_POINTS:
            steps = np.linspace(start, end, _MOST_POINTS)
        times = [np.interp(steps, c.env_steps, c.seconds) for c in self.curves]
        scores = np.array([np.interp(steps, c.env_steps, c.scores) for c in self.curves])
        interval = confidence_interval(scores) if len(scores) > 1 else (None, None)
        return MeanCurve(steps, np.mean(times, axis=0), scores.mean(axis=0), *interval)


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
            left_out.append(f"{folder} ({_repetition(run, equal)})")
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

    Environments are in order of first appearance. The groups of an environment are sorted by score,
    the highest first.
    """
    groups = []
    for environment, score in _scores(runs).items():
        own = [run for run in runs if run.environment == environment]
        keys = _telling_keys(own)
        found = []
        for values in dict.fromkeys(_values(run, keys) for run in own):
            members = tuple(run for run in own if _values(run, keys) == values)
            treatment = members[0].treatment
            label = " ".join(f"{key}={_short(treatment[key])}" for key in keys if key in treatment)
            curves = tuple(run.curves[score] for run in members)
            found.append(Group(environment, label or environment, members, curves, score))
        groups += sorted(found, key=lambda g: -g.final[0])
    return groups


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Returns the keys that differ between groups, with their value in each group as text.

    The value is `-` where a group's configuration does not have the key. Keys of `_FIRST` come
    first.
    """
    treatments = [g.runs[0].treatment for g in groups]
    keys = sorted({key for treatment in treatments for key in treatment})
    keys.sort(key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    found = {key: [shown(t[key]) if key in t else "-" for t in treatments] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _repetition(run: StoredRun, longest: StoredRun) -> str:
    """Returns the reason for which `run` is left out: `longest` has equal treatment and seed."""
    keys = sorted(run.config.keys() | longest.config.keys())
    differ = [key for key in keys if str(run.config.get(key)) != str(longest.config.get(key))]
    if not differ:
        return f"same configuration and seed as {longest.folder}"
    return f"same configuration and seed as {longest.folder}, except for {', '.join(differ)}"


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
