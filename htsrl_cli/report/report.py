"""`htsrl report`: compares runs in a table, in learning curves, and on one page to send.

Runs are grouped by what differs in their configurations, the seed apart; a group is shown by its
mean and the 95 % bootstrap interval over its runs. Equal configurations and seeds give equal runs:
one of them counts. Environments are not compared with each other. A score is the final metric where
all runs of an environment were evaluated, else the mean raw return of the last 100 episodes of the
training.
"""

from __future__ import annotations

import base64
import html
import io
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from htsrl_cli.config.identity import changes_no_result
from htsrl_cli.config.plain import flatten
from htsrl_cli.config.wording import shown
from htsrl_cli.errors import UsageError
from htsrl_cli.tracking.bootstrap import Array, mean_interval
from htsrl_cli.tracking.run_log import (
    EVAL_RETURN,
    FINAL_METRIC,
    METRICS_FILE,
    RECENT_RETURN,
    SUMMARY_FILE,
    read_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFIG_FILE = "config.yaml"
PAGE_FILE = "report.html"
FIGURE_FILE = "learning_curves.png"
TABLE_FILE = "report.json"
# Of the keys that name an environment, one stands in every kind.
_ENV_NAMES = ("game", "id", "scenario", "name")
# What a reader looks for first, where it differs.
_FIRST = ("algo.name", "runner.name", "actors.precision", "learner.precision")
# Differences of these make no group; of total_steps they do where a schedule spans the run.
_NOT_COMPARED = ("seed", "total_steps", "checkpoint", "log", "eval")
_SCHEDULES = ("algo.anneal_learning_rate", "algo.anneal_clip_coef")
_NUM_POINTS = 200
FINAL_SCORE = "final metric"
RECENT_SCORE = "mean score of 100 episodes"


class Curve(NamedTuple):
    """How a score grew; [N] each."""

    env_steps: Array
    seconds: Array
    scores: Array


@dataclass(frozen=True)
class Run:
    """A run's configuration and how it went.

    Attributes:
        config: values by dotted key.
        curves: by score, those of FINAL_SCORE and RECENT_SCORE that it has.
        env_steps, seconds: so far.
        params_sha256: of a run that has ended.
    """

    folder: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    env_steps: int
    seconds: float
    params_sha256: str | None

    @property
    def environment(self) -> str:
        """As `pong`, `CartPole-v1` or `academy_corner`."""
        return str(next(self.config[f"env.{n}"] for n in _ENV_NAMES if f"env.{n}" in self.config))

    @cached_property
    def treatment(self) -> dict[str, Any]:
        """The values of `config` that tell groups apart."""
        has_schedule = any(self.config.get(key) for key in _SCHEDULES)
        return {
            key: value
            for key, value in self.config.items()
            if not _is_left_out(key) or (has_schedule and key == "total_steps")
        }


@dataclass(frozen=True)
class Group:
    """Runs of an environment that differ in nothing but the seed.

    Attributes:
        label: the values that tell it from other groups of its environment.
        curves: of each run, by the score that all of the environment have.
    """

    environment: str
    label: str
    runs: tuple[Run, ...]
    curves: tuple[Curve, ...]
    score: str

    def final(self) -> tuple[float, float | None, float | None]:
        """Mean of the last scores and its interval; a single run has none."""
        scores = np.array([curve.scores[-1] for curve in self.curves])
        if len(scores) < 2:
            return float(scores[0]), None, None
        low, high = mean_interval(scores)
        return float(scores.mean()), float(low), float(high)

    def curve(self, axis: str) -> tuple[Array, Array, Array | None, Array | None]:
        """Positions, mean, low and high from where to where all runs have a score.

        Args:
            axis: `env_steps`, or `seconds` that the runs took for them on average.
        """
        starts, ends = zip(*((c.env_steps[0], c.env_steps[-1]) for c in self.curves), strict=True)
        steps = np.linspace(max(starts), max(*starts, min(ends)), _NUM_POINTS)
        places = [np.interp(steps, c.env_steps, getattr(c, axis)) for c in self.curves]
        scores = np.array([np.interp(steps, c.env_steps, c.scores) for c in self.curves])
        x = np.mean(places, axis=0)
        if len(scores) < 2:
            return x, scores[0], None, None
        return x, scores.mean(axis=0), *mean_interval(scores)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among and below `paths`, in order and each once.

    Raises:
        UsageError: there is none at or below a path.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = sorted(config.parent for config in path.rglob(CONFIG_FILE))
        runs = [folder for folder in below if (folder / METRICS_FILE).exists()]
        if not runs:
            raise UsageError(f"{path}: there is no run with {CONFIG_FILE} and {METRICS_FILE}")
        found |= dict.fromkeys(folder.resolve() for folder in runs)
    return list(found)


def load_run(folder: Path) -> Run | None:
    """A run as far as it has come; None where it has no score yet."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE))
    assert isinstance(plain, dict)
    lines = read_lines(folder)
    training = [line for line in lines if EVAL_RETURN not in line]
    evaluated = [line for line in lines if EVAL_RETURN in line]
    found = {
        FINAL_SCORE: _curve(evaluated, FINAL_METRIC),
        RECENT_SCORE: _curve(training, RECENT_RETURN),
    }
    curves = {score: curve for score, curve in found.items() if curve is not None}
    if not curves:
        return None
    env_steps, seconds = max((line["env_steps"], line["time/seconds"]) for line in lines)
    summary = folder / SUMMARY_FILE
    ended = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    return Run(
        folder,
        dict(flatten({str(key): value for key, value in plain.items()})),
        curves,
        env_steps,
        seconds,
        ended.get("params_sha256"),
    )


def _curve(lines: Sequence[dict[str, Any]], score: str) -> Curve | None:
    """Of the lines that have a score, in order of env steps; None without any."""
    scored = sorted(
        (line["env_steps"], line["time/seconds"], line[score])
        for line in lines
        if line[score] is not None
    )
    return Curve(*map(np.array, zip(*scored, strict=True))) if scored else None


def select(found: Mapping[Path, Run | None]) -> tuple[list[Run], list[str]]:
    """The runs that are compared, and the others as `FOLDER (REASON)`.

    Of runs with the same configuration and seed the one with the most env steps is compared.

    Args:
        found: runs by folder; None where there is no score.
    """
    loaded = [run for run in found.values() if run is not None]
    keys = sorted({key for run in loaded for key in run.treatment})

    def identity(run: Run) -> tuple[str, ...]:
        return str(run.config.get("seed")), *_values(run, keys)

    longest: dict[tuple[str, ...], Run] = {}
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


def group(runs: Sequence[Run]) -> list[Group]:
    """Groups, those of an environment beside each other, in order of first appearance."""
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


def _scores(runs: Collection[Run]) -> dict[str, str]:
    """By environment, in order of first appearance: the score that its runs are compared by."""
    return {run.environment: FINAL_SCORE for run in runs} | {
        run.environment: RECENT_SCORE for run in runs if FINAL_SCORE not in run.curves
    }


def _telling_keys(runs: Sequence[Run]) -> list[str]:
    """Keys that tell groups apart: some that are looked at first, and what differs beside them.

    An algorithm's own defaults follow from its name and are left out.
    """
    chosen: list[str] = []
    for key in _FIRST:
        if _num_groups(runs, [*chosen, key]) > _num_groups(runs, chosen):
            chosen.append(key)
    alike: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        alike.setdefault(_values(run, chosen), []).append(run)
    keys = sorted({key for run in runs for key in run.treatment})
    # What changes results before what changes the speed only.
    keys.sort(key=changes_no_result)
    return chosen + [
        key
        for key in keys
        if key not in chosen and any(_num_groups(members, [key]) > 1 for members in alike.values())
    ]


def _num_groups(runs: Sequence[Run], keys: Sequence[str]) -> int:
    return len({_values(run, keys) for run in runs})


def _short(value: Any) -> str:
    """A configuration's value; four digits of a number tell those of a search apart."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _is_left_out(key: str) -> bool:
    return any(key == entry or key.startswith(f"{entry}.") for entry in _NOT_COMPARED)


def _values(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(run.treatment.get(key)) for key in keys)


def table_rows(groups: Sequence[Group]) -> list[dict[str, str]]:
    """The table's cells by column, a row for each group, the best of an environment first."""
    rows = []
    order = list(dict.fromkeys(g.environment for g in groups))
    for g in sorted(groups, key=lambda g: (order.index(g.environment), -g.final()[0])):
        mean, low, high = g.final()
        steps = [run.env_steps for run in g.runs]
        rows.append(
            {
                "environment": g.environment,
                "group": g.label,
                "runs": str(len(g.runs)),
                "env steps": _range([f"{s:,}" for s in (min(steps), max(steps))]),
                "measure": g.score,
                "score": f"{mean:.2f}",
                "95 % interval": "-" if low is None else f"{low:.2f} to {high:.2f}",
                "env steps/s": f"{statistics.median(r.env_steps / r.seconds for r in g.runs):.0f}",
                "minutes": f"{statistics.median(r.seconds for r in g.runs) / 60:.1f}",
            }
        )
    return rows


def _range(ends: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def draw(groups: Sequence[Group]) -> Figure:
    """Learning curves: a row for each environment, against env steps and against time."""
    from matplotlib.figure import Figure

    environments = list(dict.fromkeys(g.environment for g in groups))
    figure = Figure(figsize=(11, 3.8 * len(environments)), layout="constrained")
    axes = figure.subplots(len(environments), 2, squeeze=False, sharey="row")
    for row, environment in zip(axes, environments, strict=True):
        own = [g for g in groups if g.environment == environment]
        _draw_panel(row[0], own, "env_steps", 1.0)
        _draw_panel(row[1], own, "seconds", 60.0)
        row[0].set(title=environment, xlabel="env steps", ylabel=own[0].score)
        row[1].set(xlabel="minutes, mean over the runs")
        row[0].legend(fontsize="small")
    return figure


def _draw_panel(axes: Axes, groups: Sequence[Group], axis: str, unit: float) -> None:
    for g in groups:
        x, mean, low, high = g.curve(axis)
        (line,) = axes.plot(x / unit, mean, label=f"{g.label} ({len(g.runs)})")
        if low is not None and high is not None:
            axes.fill_between(x / unit, low, high, color=line.get_color(), alpha=0.2)
    axes.grid(alpha=0.3)


_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>htsrl report</title>
<style>
body {{ font-family: system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 2rem }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: left }}
img {{ max-width: 100% }}
code {{ font-size: .85em; word-break: break-all }}
</style></head><body>
<h1>htsrl report</h1>
<p>A run's score is its final metric, the mean over the last ten evaluated policies; where not all
runs of an environment were evaluated, it is the mean of the last 100 episodes of the training.
Intervals are 95 % bootstrap intervals of the mean over the runs of a group; rates and times are
medians.</p>
{groups}
<img alt="learning curves" src="data:image/png;base64,{figure}">
<h2>Runs</h2>
{runs}
{left_out}
</body></html>
"""


def page(groups: Sequence[Group], left_out: Sequence[str], png: bytes) -> str:
    """All of the report as one HTML page that needs no other file."""
    runs = [
        {
            "group": g.label if g.label == g.environment else f"{g.environment} {g.label}",
            "seed": str(run.config.get("seed")),
            "env steps": f"{run.env_steps:,}",
            "score": f"{curve.scores[-1]:.2f}",
            "parameters (sha256)": run.params_sha256 or "-",
            "folder": str(run.folder),
        }
        for g in groups
        for run, curve in zip(g.runs, g.curves, strict=True)
    ]
    return _PAGE.format(
        groups=_html_table(table_rows(groups)),
        figure=base64.b64encode(png).decode(),
        runs=_html_table(runs, code=("parameters (sha256)", "folder")),
        left_out="\n".join(f"<p>left out: {html.escape(run)}</p>" for run in left_out),
    )


def _html_table(rows: Sequence[dict[str, str]], code: Sequence[str] = ()) -> str:
    def cell(name: str, value: str) -> str:
        text = html.escape(value)
        return f"<td><code>{text}</code></td>" if name in code else f"<td>{text}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "\n".join(
        "<tr>" + "".join(cell(name, value) for name, value in row.items()) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def run(paths: Sequence[Path], output: Path) -> None:
    """Prints the table and writes page, figure and JSON into the folder `output`.

    Raises:
        UsageError: there is no run, matplotlib is missing, or the folder cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("report draws with matplotlib: pip install 'htsrl[report]'") from error
    runs, left_out = select({folder: load_run(folder) for folder in find_runs(paths)})
    if not runs:
        raise UsageError("no episode of these runs has ended yet: there is nothing to compare")
    groups = group(runs)
    rows = table_rows(groups)
    for environment in dict.fromkeys(row["environment"] for row in rows):
        Console().print(_table([row for row in rows if row["environment"] == environment]))
    for excluded in left_out:
        Console().out(f"left out: {excluded}", highlight=False)
    buffer = io.BytesIO()
    draw(groups).savefig(buffer, format="png", dpi=120)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / FIGURE_FILE).write_bytes(buffer.getvalue())
        (output / TABLE_FILE).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        (output / PAGE_FILE).write_text(page(groups, left_out, buffer.getvalue()), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from error
    Console().print(f"{output / PAGE_FILE} shows it all; beside it {FIGURE_FILE} and {TABLE_FILE}")


def _table(rows: Sequence[dict[str, str]]) -> Table:
    """Of the groups of one environment."""
    # Narrow: a terminal of 80 columns shall leave room for the group.
    title = f"{rows[0]['environment']}, score: {rows[0]['measure']}"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = [name for name in rows[0] if name not in ("environment", "measure")]
    for name in names:
        table.add_column(name, no_wrap=name != "group", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table
