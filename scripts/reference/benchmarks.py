"""The tables and figures of docs/benchmarks.md and of the README, from scripts/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.compare_learning import Trained, means_table
from scripts.learning_curve import Point, curve_table, evenly_spaced
from scripts.reference.markdown import table

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
# Result files: their names, and the tasks that they measure.
THROUGHPUT = {
    "compare_peers_pong_ppo": "Pong, PPO",
    "compare_peers_pong_a2c": "Pong, A2C",
    "compare_peers_football": "Football, academy 3 vs 1, PPO",
}
LEARNING = {
    "pong_ppo": "Pong, PPO",
    "football_academy_empty_goal_close": "Football, academy empty goal, PPO",
    "football_academy_run_to_score": "Football, academy run to score, PPO",
    "football_3_vs_1_three_players": "Football, academy 3 vs 1 with three players, PPO",
}
_NOT_MEASURED = "Not measured yet with this version."
_ROWS_OF_CURVE = 12


def load(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Returns a result, or None if there is none whose commit, date and machine are known."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if "measured" in result else None


def origin(measured: Mapping[str, Any]) -> str:
    """Returns the line below a table that says what it was measured on, and when."""
    sets = ", ".join(name.upper().replace("_", "-") for name in measured["instruction_sets"])
    parts = [
        f"{measured['processor']} ({sets}), {measured['cores']} cores",
        *([measured["gpu"]] if measured["gpu"] else []),
        f"Python {measured['python']}, torch {measured['torch']}",
        measured["date"],
        f"commit {measured['commit']}",
    ]
    return f"*{'; '.join(parts)}.*"


def throughput(folder: Path = RESULTS) -> str:
    """Returns a table of env steps per second for each task that was compared with its peers."""
    parts = []
    for name, task in THROUGHPUT.items():
        result = load(name, folder)
        if result is not None:
            header = (task, "env steps/s (median)", "lowest and highest", "rounds")
            parts.append(_with_origin(table(header, _rates(result["runs"])), result))
    return "\n\n".join(parts) or _NOT_MEASURED


def _rates(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(run["name"] for run in runs):
        rates = [run["rate"] for run in runs if run["name"] == name]
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        rows.append((name, f"{statistics.median(rates):,.0f}", spread, str(len(rates))))
    return rows


def asynchrony(folder: Path = RESULTS) -> str:
    """Returns the ratios that asynchronous collection reached, with the aim of each."""
    result = load("asynchrony", folder)
    if result is None:
        return _NOT_MEASURED
    rows = [(c["name"], f"{c['value']:.2f}", f"{c['low']:g}") for c in result["comparisons"]]
    return _with_origin(table(("ratio", "measured", "aim, at least"), rows), result)


def paper_claims(folder: Path = RESULTS) -> str:
    """Returns the plot of the paper's throughput figures."""
    result = load("paper_claims", folder)
    if result is None:
        return _NOT_MEASURED
    plot = "![Env steps per second](../scripts/results/paper_claims.png)"
    return _with_origin(plot, result)


def learning(folder: Path = RESULTS) -> str:
    """Returns plot, table and random policy's score of each learning curve."""
    parts = []
    for name, task in LEARNING.items():
        result = load(name, folder)
        if result is None:
            continue
        plot = f"![{task}](../scripts/results/{name}.png)"
        points = evenly_spaced([Point(**point) for point in result["points"]], _ROWS_OF_CURVE)
        parts.append(_with_origin(f"**{task}**\n\n{plot}\n\n{curve_table(points)}", result))
    return "\n\n".join(parts) or _NOT_MEASURED


def compared_learning(folder: Path = RESULTS) -> str:
    """Returns the mean returns of the runners and precisions over several seeds."""
    result = load("compare_learning", folder)
    if result is None:
        return _NOT_MEASURED
    return _with_origin(means_table([Trained(**run) for run in result["runs"]]), result)


def _with_origin(text: str, result: Mapping[str, Any]) -> str:
    return f"{text}\n\n{origin(result['measured'])}"


REGIONS: Mapping[str, Callable[..., str]] = {
    "throughput": throughput,
    "asynchrony": asynchrony,
    "paper-claims": paper_claims,
    "learning": learning,
    "compared-learning": compared_learning,
}
README_REGIONS: Mapping[str, Callable[..., str]] = {"throughput": throughput}
