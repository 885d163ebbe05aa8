"""Comparison of runs in a table, learning curves and one HTML page, for `htsrl report`.

Runs that differ only in the seed form a group. The report shows the mean score of each group, with
a 95 % bootstrap confidence interval over its runs. Runs with the same configuration and seed should
have the same results, so only the run with the most env steps counts. Runs in different
environments are not compared with each other. The score is the final metric if all runs in an
environment have a final metric. Otherwise, it is the mean raw return of the last 100 training
episodes.

The configurations of a group's runs may also differ in the sections `checkpoint`, `log` and `eval`.
They may differ in `total_steps` unless a schedule, such as an annealed learning rate, spans the
run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from htsrl_cli.errors import UsageError
from htsrl_cli.report.groups import group, select
from htsrl_cli.report.page import draw, page, table_rows, terminal_table
from htsrl_cli.report.runs import find_runs, load_run

PAGE_FILE = "report.html"
FIGURE_FILE = "learning_curves.png"
TABLE_FILE = "report.json"


def write_report(paths: Sequence[Path], output: Path) -> None:
    """Prints a table for each environment; writes a page, a figure and a JSON file to `output`.

    Args:
        paths: run folders, or folders that contain run folders.
        output: the folder to write to.

    Raises:
        UsageError: a path contains no run, no run has a score, matplotlib is missing, or `output`
            cannot be written to.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("report needs matplotlib: pip install 'htsrl[report]'") from error
    runs, left_out = select({folder: load_run(folder) for folder in find_runs(paths)})
    if not runs:
        raise UsageError("no episode of these runs has ended yet: there is nothing to compare")
    groups = group(runs)
    rows = table_rows(groups)
    for environment in dict.fromkeys(row["environment"] for row in rows):
        Console().print(terminal_table([row for row in rows if row["environment"] == environment]))
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
    Console().print(f"wrote {output / PAGE_FILE}, and next to it {FIGURE_FILE} and {TABLE_FILE}")
