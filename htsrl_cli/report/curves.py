"""Learning curves: an interactive plot for the page, and a figure for a PNG file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from htsrl_cli.report.groups import Group, MeanCurve
from htsrl_cli.tracking.bootstrap import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colors of Okabe and Ito (https://jfly.uni-koeln.de/color/), which color-blind readers can tell
# apart. Yellow and black, which are hard to see on a light or dark page, are replaced by gray.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#808080")
_DASHES = ((), (8, 3), (2, 2), (8, 3, 2, 3))
# A curve of at most this many points has a marker at each of them.
_MOST_MARKERS = 20
# Titles of the axes by field of MeanCurve.
AXES = {"env_steps": "env steps", "seconds": "minutes, mean over the runs"}


class Style(NamedTuple):
    """The line style of a group.

    Attributes:
        color: color as `#rrggbb`.
        dash: lengths in pixels of dashes and of the gaps after them; empty for a solid line.
    """

    color: str
    dash: tuple[int, ...]


def style(index: int) -> Style:
    """Returns the style of group number `index` of an environment; styles repeat after 28."""
    return Style(_COLORS[index % len(_COLORS)], _DASHES[index // len(_COLORS) % len(_DASHES)])


def interactive(groups: Sequence[Group], axis: str) -> str:
    """Returns the plot of an environment's curves as JSON for plotly.js.

    The `meta` of a trace holds the number of its group and its part: `raw`, or `mean`, `low` and
    `high`, which the page smooths. The JSON can stand inside HTML.

    Args:
        groups: the groups of the environment.
        axis: the quantity on the x axis, a key of AXES.
    """
    import plotly.graph_objects as go

    bands = [t for i, g in enumerate(groups) for t in _band(g.curve, axis, i)]
    lines = [t for i, g in enumerate(groups) for t in _lines(g, axis, i)]
    figure = go.Figure([*bands, *lines])
    figure.update_layout(
        template="none",
        height=380,
        margin={"l": 55, "r": 10, "t": 30, "b": 45},
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left"},
        xaxis={
            "title": {"text": AXES[axis]},
            "automargin": True,
            "rangemode": "tozero",
            "zeroline": False,
        },
        yaxis={"title": {"text": groups[0].score}, "automargin": True, "zeroline": False},
    )
    text: str = figure.to_json()
    return text


def _band(curve: MeanCurve, axis: str, index: int) -> list[dict[str, Any]]:
    """Returns the traces of a confidence interval; none for a single run or a single point."""
    if curve.low is None or curve.high is None or len(curve.mean) < 2:
        return []
    common = {
        "x": _positions(curve, axis),
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    red, green, blue = (int(style(index).color[i : i + 2], 16) for i in (1, 3, 5))
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red}, {green}, {blue}, 0.15)"}
    return [
        common | {"y": _numbers(curve.low), "meta": {"group": index, "part": "low"}},
        common | {"y": _numbers(curve.high), "meta": {"group": index, "part": "high"}} | fill,
    ]


def _lines(group: Group, axis: str, index: int) -> list[dict[str, Any]]:
    """Returns the traces of a mean curve: faintly as it is, and the curve that may be smoothed."""
    curve, (color, dash) = group.curve, style(index)
    x, y = _positions(curve, axis), _numbers(curve.mean)
    columns = [_numbers(curve.env_steps), _numbers(curve.seconds / 60), y]
    hover = [
        f"<b>{html.escape(group.label).replace(' ', '<br>')}</b>",
        "%{customdata[0]:,.0f} env steps, %{customdata[1]:,.2f} minutes",
        "score %{customdata[2]:,.2f}",
    ]
    error = None
    if curve.low is not None and curve.high is not None:
        columns += [_numbers(curve.low), _numbers(curve.high)]
        hover.append("95 % interval %{customdata[3]:,.2f} to %{customdata[4]:,.2f}")
        if len(y) == 1:
            # A band needs two points.
            error = {
                "array": _numbers(curve.high - curve.mean),
                "arrayminus": _numbers(curve.mean - curve.low),
            }
    raw = {
        "x": x,
        "y": y,
        "mode": "lines",
        "opacity": 0.45,
        "line": {"color": color, "width": 1},
        "hoverinfo": "skip",
        "meta": {"group": index, "part": "raw"},
    }
    mean = {
        "x": x,
        "y": y,
        "mode": "lines+markers" if len(x) <= _MOST_MARKERS else "lines",
        "line": {
            "color": color,
            "width": 2,
            "dash": ",".join(f"{length}px" for length in dash) or "solid",
        },
        "marker": {"size": 9 if len(x) == 1 else 5},
        "error_y": error,
        "name": html.escape(group.label),
        "customdata": list(zip(*columns, strict=True)),
        "hovertemplate": "<br>".join(hover) + "<extra></extra>",
        "meta": {"group": index, "part": "mean"},
    }
    return [raw, mean]


def _positions(curve: MeanCurve, axis: str) -> list[float]:
    return _numbers(curve.seconds / 60 if axis == "seconds" else curve.env_steps)


def _numbers(values: Array) -> list[float]:
    """Returns the values with seven significant digits, which keeps the page small."""
    return [float(f"{value:.7g}") for value in values]


def draw(groups: Sequence[Group]) -> Figure:
    """Draws a row of two plots for each environment: its curves over env steps and over minutes."""
    from matplotlib.figure import Figure

    environments = list(dict.fromkeys(g.environment for g in groups))
    owned = [[g for g in groups if g.environment == name] for name in environments]
    # The legend below the plots has a line for each group.
    heights = [3.8 + 0.2 * len(own) for own in owned]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    rows = figure.subfigures(len(owned), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, own in zip(rows, owned, strict=True):
        panels = row.subplots(1, 2, sharey=True)
        for axes, (axis, title) in zip(panels, AXES.items(), strict=True):
            _draw_panel(axes, own, axis)
            axes.set(xlabel=title)
            axes.set_xlim(left=0)
        panels[0].set(ylabel=own[0].score)
        row.suptitle(own[0].environment)
        row.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", frameon=False)
    return figure


def _draw_panel(axes: Axes, groups: Sequence[Group], axis: str) -> None:
    for index, g in enumerate(groups):
        curve, (color, dash) = g.curve, style(index)
        x = _positions(curve, axis)
        label = f"{g.label} ({len(g.runs)})"
        marker = "o" if len(x) <= _MOST_MARKERS else ""
        look: dict[str, Any] = {
            "color": color,
            "linestyle": (0, dash),
            "marker": marker,
            "markersize": 4,
        }
        axes.plot(x, curve.mean, label=label, **look)
        if curve.low is not None and curve.high is not None:
            if len(x) == 1:
                axes.vlines(x, curve.low, curve.high, color=color)
            axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)
