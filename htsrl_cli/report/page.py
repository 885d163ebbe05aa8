"""Rendering of a report as one HTML page, from `page.html`, `page.css` and `page.js`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from htsrl_cli.report.curves import AXES, interactive, style
from htsrl_cli.report.groups import Group, differences
from htsrl_cli.report.runs import StoredRun
from htsrl_cli.report.table import result
from htsrl_cli.report.videos import LARGEST_EMBEDDED_MB, find_video


def page(groups: Sequence[Group], left_out: Sequence[str], output: Path) -> str:
    """Returns the whole report as one HTML page that needs no other file.

    Only the videos that are too large to be embedded are links.

    Args:
        left_out: runs that are not compared, each in the form `FOLDER (REASON)`.
        output: the folder of the page, from which links start.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = dict.fromkeys(g.environment for g in groups)
    text: str = templates.get_template("page.html").render(
        environments=[
            _environment([g for g in groups if g.environment == name], output) for name in names
        ],
        num_runs=sum(len(g.runs) for g in groups),
        num_groups=len(groups),
        left_out=left_out,
        largest_mb=LARGEST_EMBEDDED_MB,
        plotly=get_plotlyjs(),
    )
    return text


def _environment(groups: Sequence[Group], output: Path) -> dict[str, Any]:
    """Returns what the page shows of an environment's groups."""
    heads = [
        {"label": g.label, "style": style(index), "texts": result(g).texts()}
        for index, g in enumerate(groups)
    ]
    shown = list(zip(heads, groups, strict=True))
    videos = [(head, video) for head, g in shown if (video := find_video(g))]
    return {
        "name": groups[0].environment,
        "measure": groups[0].score,
        "groups": heads,
        "plots": {title: interactive(groups, axis) for axis, title in AXES.items()},
        "differences": differences(groups),
        "videos": [
            {
                "group": head,
                "seed": video.run.config.get("seed"),
                "caption": video.caption,
                "source": video.source(),
                "link": video.link(output),
            }
            for head, video in videos
        ],
        "runs": [(head, _runs(g)) for head, g in shown],
    }


def _runs(group: Group) -> list[dict[str, Any]]:
    """Returns the columns of each run's row, as texts."""
    return [
        {
            "seed": run.config.get("seed"),
            "score": f"{curve.scores[-1]:.2f}",
            "env_steps": f"{run.env_steps:,}",
            "minutes": f"{run.seconds / 60:.1f}",
            "folder": str(run.folder),
            "versions": _versions(run),
            "machine": _machine(run),
            "sha256": run.summary.get("params_sha256", "-"),
        }
        for run, curve in zip(group.runs, group.curves, strict=True)
    ]


def _versions(run: StoredRun) -> str:
    """Returns the versions with which the run was trained; `-` if the run did not store them."""
    versions = run.summary.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "-"


def _machine(run: StoredRun) -> str:
    """Returns the machine on which the run was trained; `-` if the run did not store it."""
    machine = run.summary.get("machine")
    if not machine:
        return "-"
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    parts = [machine["processor"], cores, machine["gpu"], machine["platform"]]
    return ", ".join(part for part in parts if part)
