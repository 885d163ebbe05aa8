"""Comparison of runs in a table, learning curves and one HTML page, for `htsrl report`.

Runs that differ only in the seed form a group. The report shows the mean score of each group, with
a 95 % bootstrap confidence interval over its runs. Runs with the same configuration and seed should
have the same results, so only the run with the most env steps counts. Runs in different
environments are not compared with each other. The score is the final metric if all runs in an
environment have a final metric. Otherwise, it is the mean raw return of the last 100 training
episodes.

The page is one file that needs no network. plotly.js, which draws its curves, is embedded (5 MB).

The configurations of a group's runs may also differ in the sections `checkpoint`, `log` and `eval`.
They may differ in `total_steps` unless a schedule, such as an annealed learning rate, spans the
run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from htsrl_cli.errors import UsageError
from htsrl_cli.report.curves import draw
from htsrl_cli.report.groups import group, select
from htsrl_cli.report.page import page
from htsrl_cli.report.runs import find_runs, load_run
from htsrl_cli.report.table import result, terminal_table

PAGE_FILE = "report.html"
FIGURE_FILE = "learning_curves.png"
TABLE_FILE = "report.json"


def write_report(paths: Sequence[Path], output: Path) -> None:
    """Prints a table for each environment; writes a page, a figure and a JSON file to `output`.

    Args:
        paths: run folders, or folders that contain run folders.
        output: the folder to write to.

    Raises:
        UsageError: a path contains no run, no run has a score, a package is missing, or `output`
            cannot be written to.
    """
    _check_packages()
    found, unreadable = {}, []
    for folder in find_runs(paths):
        try:
            found[folder] = load_run(folder)
        except ValueError as error:
            unreadable.append(f"{folder} ({' '.join(str(error).split())})")
    runs, left_out = select(found)
    left_out += unreadable
    if not runs:
        reason = "no episode of these runs has ended yet"
        if unreadable:
            reason = f"no run can be shown: {unreadable[0]}"
        raise UsageError(f"{reason}: there is nothing to compare")
    groups = group(runs)
    results = [result(g) for g in groups]
    for environment in dict.fromkeys(each.environment for each in results):
        own = [each for each in results if each.environment == environment]
        Console().print(terminal_table(own))
    for excluded in left_out:
        Console().out(f"left out: {excluded}", highlight=False)
    buffer = io.BytesIO()
    draw(groups).savefig(buffer, format="png", dpi=120)
    table = json.dumps([asdict(each) for each in results], indent=2)
    text = page(groups, left_out, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / FIGURE_FILE).write_bytes(buffer.getvalue())
        (output / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
        (output / PAGE_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from error
    wrote = f"wrote {output / PAGE_FILE}, and next to it {FIGURE_FILE} and {TABLE_FILE}"
    Console().print(wrote, markup=False)


def _check_packages() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise UsageError(f"report needs {error.name}: pip install 'htsrl[report]'") from error
