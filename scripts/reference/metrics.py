"""The generated parts of docs/reference/metrics.md: the registry of metrics, by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from htsrl_cli.tracking.metric_names import METRICS, Metric
from scripts.reference.markdown import anchored, table

# Prefixes of metric names, in the page's order. The metric `env_steps` has an empty prefix.
GROUPS = ("", "episode", "loss", "learner", "lag", "eval", "time")


def metrics_of(group: str) -> str:
    """Returns a table of the metrics whose names have the prefix `group`."""
    rows = [
        [anchored(name), metric.unit, _text(metric)]
        for name, metric in METRICS.items()
        if name.rpartition("/")[0] == group
    ]
    return table(["Metric", "Unit", "Meaning and *what to look for*"], rows)


def _text(metric: Metric) -> str:
    return f"{metric.meaning}<br>*{metric.good}*" if metric.good else metric.meaning


REGIONS: Mapping[str, Callable[[], str]] = {
    group or "env_steps": partial(metrics_of, group) for group in GROUPS
}
