"""Medians, comparisons and JSON of measured runs (`MeasuredRun`) for the benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from htsrl_cli.bench.measured_run import MeasuredRun, is_quiet
from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import HtsrlError
from scripts.provenance import write_result


def compose(words: Sequence[str]) -> TrainConfig:
    """Returns the configuration of `htsrl train WORDS`."""
    return to_train_config(Composer("train").job(words))


def same_configurations(
    now: Mapping[str, Sequence[str]], earlier: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns the tasks whose words have the same configuration now as earlier.

    Words may change without that, for example if a preset takes their place.
    """
    same = []
    for task in now.keys() & earlier.keys():
        # Earlier words may be refused now.
        with suppress(HtsrlError):
            if compose(now[task]) == compose(earlier[task]):
                same.append(task)
    return same


def show(run: MeasuredRun) -> MeasuredRun:
    """Prints a run's figures on one line; returns the run."""
    print(
        f"  {run.name:<16} {run.rate:9.1f} env steps/s   ({run.env_steps} in "
        f"{run.seconds:.1f} s; {run.busy_cores_before:.2f} cores busy before)",
        flush=True,
    )
    return run


def median(runs: Sequence[MeasuredRun], name: str) -> float:
    """Returns the median rate of the runs called `name`."""
    return statistics.median(rates(runs, name))


def rates(runs: Sequence[MeasuredRun], name: str) -> list[float]:
    """Returns the rates of the runs called `name`, in the order of `runs`."""
    return [run.rate for run in runs if run.name == name]


def show_medians(runs: Sequence[MeasuredRun]) -> None:
    """Prints the median and the spread of the rates of each name.

    Also prints a warning if other processes were busy before a run.
    """
    for name in dict.fromkeys(run.name for run in runs):
        values = rates(runs, name)
        middle = statistics.median(values)
        print(
            f"  {name:<16} median {middle:.1f}, from {min(values):.1f} to {max(values):.1f} "
            f"({(max(values) - min(values)) / middle:.1%} of the median), {len(values)} runs"
        )
    disturbed = sum(not is_quiet(run) for run in runs)
    if disturbed:
        print(
            f"  WARNING: other processes were busy before {disturbed} of {len(runs)} runs "
            "(see above): these figures are unreliable; repeat on a quiet machine"
        )


@dataclass(frozen=True)
class Comparison:
    """A figure and its target range.

    Attributes:
        name: name of the figure.
        value: measured value.
        low, high: limits of the target range.
    """

    name: str
    value: float
    low: float
    high: float = float("inf")

    @property
    def holds(self) -> bool:
        """True if the value is within the target range."""
        return self.low <= self.value <= self.high

    @property
    def target(self) -> str:
        """The target range in words."""
        if self.high < float("inf"):
            return f"{self.low:g} to {self.high:g}"
        return f"at least {self.low:g}"

    def show(self) -> None:
        """Prints value, target and verdict on one line."""
        verdict = "reached" if self.holds else "MISSED"
        print(f"  {self.name}: {self.value:.3f} (target: {self.target}; {verdict})")


def write_runs(
    path: Path,
    runs: Sequence[MeasuredRun],
    comparisons: Sequence[Comparison],
    figures: Mapping[str, Any],
) -> None:
    """Writes the runs, the comparisons and further figures as JSON to `path`."""
    report = {
        "runs": [asdict(run) for run in runs],
        "comparisons": [
            {"name": c.name, "value": c.value, "target": c.target} for c in comparisons
        ],
        **figures,
    }
    write_result(path, report)
