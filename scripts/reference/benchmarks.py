"""The tables and figures of docs/benchmarks.md and of the README, from docs/results."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import ranks_model
from scripts.compare_learning import Trained, means_table, summary_table
from scripts.compare_returns import LastReturn, Rate, returns_table
from scripts.kernels import Timing, timings_table
from scripts.learning_curve import Point, curve_table, evenly_spaced
from scripts.paper_tables import Evaluated, tables
from scripts.provenance import RESULTS
from scripts.reference.markdown import table
from scripts.time_to_score import runs_table

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
# Between lines of one paragraph: Markdown keeps them apart by the backslash.
_BREAK = "\\\n"
# Variants in the README's table, and their titles.
_SHOWN = {"fp32": "htsrl, fp32", "bf16": "htsrl, bf16", "sync fp32": "htsrl, synchronous"}


@dataclass(frozen=True)
class Result:
    """A published result.

    Attributes:
        path: the result's JSON file, which is in the same folder as its plots.
        content: the JSON object in the file; its key `measured` holds the date, commit, machine and
            package versions.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def processor(self) -> str:
        """The processor on which the result was measured, with its instruction sets."""
        return _processor(self.content["measured"])

    def figure(self, root: Path, title: str, suffix: str = "") -> str:
        """Returns Markdown that shows a plot of this result, for a page in the folder `root`.

        The name of the plot's file is the name of the result, followed by `suffix`.
        """
        path = self.path.with_name(f"{self.path.stem}{suffix}.png")
        return f"![{title}]({path.relative_to(root)})"

    @property
    def origin(self) -> str:
        """Markdown with the machine, package versions, date and commit of the result.

        It has a line for each measurement of which the result consists; equal lines stand once.
        """
        origins = [*self.content.get("measured_earlier", []), self.content["measured"]]
        return _BREAK.join(dict.fromkeys(_origin(measured) for measured in origins))

    def with_origin(self, text: str) -> str:
        """Returns `text` with this result's origin below it."""
        return f"{text}\n\n{self.origin}"


def _processor(measured: Mapping[str, Any]) -> str:
    sets = [name.upper().replace("_", "-") for name in measured["instruction_sets"]]
    return f"{measured['processor']} ({', '.join(sets)})"


def _origin(measured: Mapping[str, Any]) -> str:
    parts = [
        f"{_processor(measured)}, {measured['cores']} cores",
        *([measured["gpu"]] if measured["gpu"] else []),
        f"Python {measured['python']}, torch {measured['torch']}",
        measured["date"],
        f"commit {measured['commit']}",
    ]
    return f"*{'; '.join(parts)}.*"


def find(name: str, folder: Path = RESULTS) -> Iterator[Result]:
    """Yields the published results whose names match the pattern `name`, for all processors.

    Raises:
        ValueError: a file does not say on which machine its result was measured.
    """
    for path in sorted(folder.glob(f"*/{name}.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "measured" not in content:
            raise ValueError(f"{path} has no entry `measured`: measure this result again")
        yield Result(path, content)


def _join(parts: Iterator[str]) -> str:
    return "\n\n".join(parts) or _NOT_MEASURED


def throughput(folder: Path = RESULTS) -> str:
    """Returns a table for each task and processor: env steps per second of htsrl and its peers."""
    return _join(
        result.with_origin(
            table(
                (task, "env steps/s (median)", "lowest and highest", "rounds"),
                _rate_rows(result.content["runs"]),
            )
        )
        for name, task in THROUGHPUT.items()
        for result in find(name, folder)
    )


def _rates(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = dict.fromkeys(run["name"] for run in runs)
    return {name: [run["rate"] for run in runs if run["name"] == name] for name in names}


def _rate_rows(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            str(len(rates)),
        )
        for name, rates in _rates(runs).items()
    ]


def compared_throughput(folder: Path = RESULTS) -> str:
    """Returns one table with the median rates of all tasks, and the results' origins below it."""
    results = [(task, result) for name, task in THROUGHPUT.items() for result in find(name, folder)]
    if not results:
        return _NOT_MEASURED
    rows = []
    for task, result in results:
        rates = _rates(result.content["runs"])
        medians = {name: statistics.median(values) for name, values in rates.items()}
        peer = max(medians[name] for name in medians if name.startswith("SB3"))
        best = max(medians[name] for name in ("fp32", "bf16") if name in medians)
        shown = [f"{medians[name]:,.0f}" if name in medians else "-" for name in _SHOWN]
        processor = re.sub(r" \(family[^)]*\)", "", result.processor)
        rows.append((task, processor, *shown, f"{peer:,.0f}", f"{best / peer:.1f}x"))
    header = ("env steps/s", "processor", *_SHOWN.values(), "Stable-Baselines3", "ratio")
    origins = dict.fromkeys(result.origin for _, result in results)
    return f"{table(header, rows)}\n\n{_BREAK.join(origins)}"


def kernels(folder: Path = RESULTS) -> str:
    """Returns tables of the kernels' times, one for each processor and instruction-set limit."""
    return _join(
        result.with_origin(_limit(result) + timings_table(_timings(result)))
        for result in find("kernels*", folder)
    )


def _limit(result: Result) -> str:
    limit = result.content["limit"]
    return f"**The same processor, limited to {limit.upper()} by `--isa`**\n\n" if limit else ""


def _timings(result: Result) -> list[Timing]:
    return [Timing(**timing) for timing in result.content["timings"]]


def asynchrony(folder: Path = RESULTS) -> str:
    """Returns tables of the throughput ratios that `scripts.asynchrony` measured, with targets."""
    return _join(
        result.with_origin(
            table(
                ("ratio", "measured", "target"),
                [
                    (c["name"], f"{c['value']:.2f}", c["target"])
                    for c in result.content["comparisons"]
                ],
            )
        )
        for result in find("asynchrony", folder)
    )


# Plots of `scripts.paper_claims`, and their titles; a result may lack some.
_CLAIMS = {
    "steps": "Env steps per second",
    "rollouts": "Env steps per second",
    "lag": "Policy lag",
}


def paper_claims(folder: Path = RESULTS) -> str:
    """Returns Markdown that shows the plots of `scripts.paper_claims`, for each processor."""
    return _join(
        result.with_origin(
            "\n\n".join(
                result.figure(folder.parent, title, f"_{name}")
                for name, title in _CLAIMS.items()
                if result.path.with_name(f"paper_claims_{name}.png").exists()
            )
        )
        for result in find("paper_claims", folder)
    )


def step_times(folder: Path = RESULTS) -> str:
    """Returns Markdown for the README that shows one plot for each processor.

    Each plot shows throughput against the variation of step times and the number of environments.
    """
    return _join(
        result.with_origin(result.figure(folder.parents[1], "Env steps per second", "_steps"))
        for result in find("paper_claims", folder)
    )


def learning(folder: Path = RESULTS) -> str:
    """Returns a plot and a table for each learning curve."""
    return _join(
        result.with_origin(
            f"**{task}**\n\n{result.figure(folder.parent, task)}\n\n"
            + curve_table(
                evenly_spaced([Point(**p) for p in result.content["points"]], _ROWS_OF_CURVE)
            )
        )
        for name, task in LEARNING.items()
        for result in find(name, folder)
    )


def compared_learning(folder: Path = RESULTS) -> str:
    """Returns tables and a plot of learning over several seeds, by correction of policy lag."""
    return _join(
        result.with_origin(
            f"{summary_table(result.content['summary'])}\n\n"
            f"{result.figure(folder.parent, 'Interquartile means')}\n\n"
            + means_table([Trained(**run) for run in result.content["runs"]])
        )
        for result in find("compare_learning", folder)
    )


def compared_returns(folder: Path = RESULTS) -> str:
    """Returns tables of returns and throughput with the hyperparameters of another library."""
    return _join(
        result.with_origin(
            returns_table(
                [LastReturn(**run) for run in result.content["runs"]],
                [Rate(**rate) for rate in result.content["rates"]],
            )
        )
        for result in find("compare_returns", folder)
    )


def paper_comparison(folder: Path = RESULTS) -> str:
    """Returns tables and plots in the form of the paper's comparison."""
    return _join(
        result.with_origin(
            f"{tables([Evaluated(**run) for run in result.content['runs']])}\n\n"
            f"{result.figure(folder.parent, 'Evaluation scores')}"
        )
        for result in find("paper_tables", folder)
    )


def times_to_score(folder: Path = RESULTS) -> str:
    """Returns tables and plots of how long each run took to its task's target."""
    return _join(
        result.with_origin(
            f"{runs_table(result.content['runs'])}\n\n"
            f"{result.figure(folder.parent, 'Learning curves')}"
        )
        for result in find("time_to_score", folder)
    )


def ranks(folder: Path = RESULTS) -> str:
    """Returns the tables of `scripts.ranks_model`, for each processor."""
    return _join(
        result.with_origin("\n\n".join(show(result.content) for show in ranks_model.TABLES))
        for result in find("ranks", folder)
    )


REGIONS: Mapping[str, Callable[..., str]] = {
    "throughput": throughput,
    "ranks": ranks,
    "kernels": kernels,
    "asynchrony": asynchrony,
    "paper-claims": paper_claims,
    "learning": learning,
    "compared-learning": compared_learning,
    "compared-returns": compared_returns,
    "paper-comparison": paper_comparison,
    "time-to-score": times_to_score,
}
README_REGIONS: Mapping[str, Callable[..., str]] = {
    "throughput": compared_throughput,
    "step-times": step_times,
}
