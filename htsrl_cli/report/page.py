"""Rendering of a report as tables, learning curves and one HTML page."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from htsrl_cli.report.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
<p>A run's score is its final metric: the mean raw score over all games of the last ten evaluated
policies. If any run of an environment was not evaluated, the score of every run of this environment
is instead the mean raw return of the last 100 training episodes. Intervals are 95 % bootstrap
confidence intervals of the mean over the runs of a group. Rates and times are medians over these
runs.</p>
{groups}
<img alt="learning curves" src="data:image/png;base64,{figure}">
<h2>Runs</h2>
{runs}
{left_out}
</body></html>
"""


def table_rows(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Returns a row for each group: a dictionary of texts by column name.

    Environments are in order of first appearance. Within an environment, groups are sorted by
    score, the highest first.
    """
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


def terminal_table(rows: Sequence[dict[str, str]]) -> Table:
    """Returns the rows of one environment as a table for the terminal."""
    # The table is narrow, so that a terminal of 80 columns has room for the group's label.
    title = f"{rows[0]['environment']}, score: {rows[0]['measure']}"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = [name for name in rows[0] if name not in ("environment", "measure")]
    for name in names:
        table.add_column(name, no_wrap=name != "group", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def draw(groups: Sequence[Group]) -> Figure:
    """Draws a row of two plots for each environment: its curves over env steps and over minutes."""
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


def page(groups: Sequence[Group], left_out: Sequence[str], png: bytes) -> str:
    """Returns the whole report as one HTML page that needs no other file.

    Args:
        left_out: runs that are not compared, each in the form `FOLDER (REASON)`.
        png: the figure with the learning curves, as the bytes of a PNG file.
    """
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
