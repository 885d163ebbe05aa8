"""The result of each group, for `report.json`, and as a table for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from htsrl_cli.report.groups import Group


@dataclass(frozen=True)
class Result:
    """The result of a group.

    Attributes:
        environment: name of the environment.
        group: label of the group.
        runs: number of runs.
        env_steps: env steps of the shortest and of the longest run.
        measure: name of the score.
        score: mean of the runs' last scores.
        interval: ends of the 95 % bootstrap confidence interval of the mean; None for a single run.
        env_steps_per_second: median over the runs.
        seconds: seconds of training, median over the runs.
    """

    environment: str
    group: str
    runs: int
    env_steps: tuple[int, int]
    measure: str
    score: float
    interval: tuple[float, float] | None
    env_steps_per_second: float
    seconds: float

    def texts(self) -> dict[str, str]:
        """Returns the columns of the group's row in a table of its environment, as texts."""
        ends = dict.fromkeys(f"{steps:,}" for steps in self.env_steps)
        interval = "-" if self.interval is None else "{:.2f} to {:.2f}".format(*self.interval)
        return {
            "group": self.group,
            "score": f"{self.score:.2f}",
            "95 % interval": interval,
            "runs": str(self.runs),
            "env steps": " to ".join(ends),
            "env steps/s": f"{self.env_steps_per_second:,.0f}",
            "minutes": f"{self.seconds / 60:.1f}",
        }


def result(group: Group) -> Result:
    """Returns the result of a group."""
    score, interval = group.final
    steps = [run.env_steps for run in group.runs]
    return Result(
        environment=group.environment,
        group=group.label,
        runs=len(group.runs),
        env_steps=(min(steps), max(steps)),
        measure=group.score,
        score=score,
        interval=interval,
        env_steps_per_second=statistics.median(r.env_steps / r.seconds for r in group.runs),
        seconds=statistics.median(run.seconds for run in group.runs),
    )


def terminal_table(results: Sequence[Result]) -> Table:
    """Returns the results of one environment as a table for the terminal."""
    # The table is narrow, so that a terminal of 80 columns has room for the group's label.
    title = f"{results[0].environment}, score: {results[0].measure}"
    # A name of an environment may look like markup.
    table = Table(title=Text(title), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rows = [each.texts() for each in results]
    for name in rows[0]:
        is_label = name == "group"
        table.add_column(
            name,
            justify="left" if is_label else "right",
            no_wrap=not is_label,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return table
