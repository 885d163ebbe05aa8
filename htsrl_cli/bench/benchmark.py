"""Measurement of training throughput and of what limits it, for `htsrl bench`.

Each round measures one run of every runner in `bench.runners` (`measured_run`). It also measures
one-thread rates, from which an upper bound on the training rate is computed (`microbenchmarks`),
and the rate at which all cores step environments if they do nothing else.
"""

from __future__ import annotations

import json
import logging
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from htsrl_cli.bench.env_rates import all_cores_env_rate
from htsrl_cli.bench.measured_run import ROLES, MeasuredRun, is_quiet, measure
from htsrl_cli.bench.microbenchmarks import OneThread
from htsrl_cli.config.sections import BenchConfig, TrainConfig
from htsrl_cli.machine import num_cores

logger = logging.getLogger(__name__)

RESULT_FILE = "bench.json"


def train_words(words: Sequence[str]) -> list[str]:
    """Returns the overrides of `htsrl bench` that are passed on to `htsrl train`."""
    own = ("bench.", "runner=", "total_steps=")
    return [word for word in words if not word.lstrip("+").startswith(own)]


def run_benchmark(
    config: BenchConfig, train: TrainConfig, words: Sequence[str], folder: Path
) -> float:
    """Measures all rounds, prints the table and any warning, and writes `bench.json`.

    Args:
        train: the configuration composed from `words`.
        words: overrides for `htsrl train`, without the runner.
        folder: the folder in which `bench.json` is written.

    Returns:
        The median env steps per second of the first runner.

    Raises:
        RunError: a run, or a process that only steps environments, failed.
    """
    one_thread: list[OneThread] = []
    env_alone: list[float] = []
    runs: list[MeasuredRun] = []
    for number in range(config.repeats):
        one_thread.append(OneThread.measure(train, config.micro_seconds))
        num_envs = train.actors.num_envs
        env_alone.append(all_cores_env_rate(train.env, num_envs, config.micro_seconds))
        logger.info(
            "round %d: upper bound %.1f env steps/s, only stepping environments %.1f env steps/s",
            number + 1,
            one_thread[-1].bound,
            env_alone[-1],
        )
        for runner in config.runners:
            runs.append(measure(runner, [*words, f"runner={runner}"], config.seconds))
            logger.info("round %d: %s %.1f env steps/s", number + 1, runner, runs[-1].rate)
    console = Console()
    console.print(_table(train, runs, one_thread, env_alone))
    for warning in _warnings(runs):
        logger.warning("%s", warning)
    report = {
        "machine": {"cores": num_cores(), "platform": platform.platform()},
        "words": list(words),
        "one_thread": [asdict(rates) | {"bound": rates.bound} for rates in one_thread],
        "env_alone": env_alone,
        "runs": [asdict(run) for run in runs],
    }
    (folder / RESULT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"raw figures: {folder / RESULT_FILE}")
    return statistics.median(_by_name(runs)[config.runners[0]])


def _by_name(runs: Sequence[MeasuredRun]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for run in runs:
        rates.setdefault(run.name, []).append(run.rate)
    return rates


def _table(
    train: TrainConfig,
    runs: Sequence[MeasuredRun],
    one_thread: Sequence[OneThread],
    env_alone: Sequence[float],
) -> Table:
    """Returns a table of medians, with columns for the bound, stepping alone and each runner."""
    bound = statistics.median(rates.bound for rates in one_thread)
    stepped = statistics.median(env_alone)
    alone = [statistics.median(rates.cost_ms[k] for rates in one_thread) for k in range(len(ROLES))]
    size = f"{train.actors.num_envs} environments x {train.runner.sync_interval} steps"
    kernel = one_thread[-1].kernel
    columns = {
        f"bound, {num_cores()} cores": [*_measured_alone(bound, alone), kernel],
        "stepping alone": [
            *_measured_alone(stepped, [1000 * min(num_cores(), train.actors.num_envs) / stepped]),
            "",
        ],
    }
    excess_ms = statistics.median(rates.excess_ms for rates in one_thread)
    for name, rates in _by_name(runs).items():
        of_name = [run for run in runs if run.name == name]
        own = _own_kernel(train, kernel, excess_ms)
        columns[name] = [*_column(train, rates, of_name, bound, stepped), own]
    table = Table("", *columns, title=f"{size}, medians of {len(one_thread)} round(s)")
    for row, title in enumerate([*_ROWS, *(["linear layer"] if kernel else [])]):
        table.add_row(title, *(column[row] for column in columns.values()))
    return table


def _own_kernel(train: TrainConfig, fastest: str, excess_ms: float) -> str:
    """Returns the name of the configured kernel and, if it is not the fastest, its extra cost.

    Args:
        fastest: name of the fastest kernel.
        excess_ms: extra milliseconds per env step with the configured kernel.
    """
    own = getattr(train.network, "linear_kernel", "")
    return f"{own}: +{excess_ms:.3f} ms" if own != fastest else own


_ROWS = (
    "env steps/s",
    "  highest - lowest",
    "  of the bound",
    "  of stepping alone",
    *(f"{role} busy" for role in ROLES),
    "slot filled after",
    "barrier",
    "rows in a pass",
    "memory (PSS)",
    "processor time for an env step",
    *(f"  {role}" for role in ROLES),
    "  idle or others",
)


def _measured_alone(rate: float, costs: Sequence[float]) -> list[str]:
    """Returns the cells of a column of the table, for a rate not measured in a training run.

    Args:
        rate: env steps per second.
        costs: CPU milliseconds per env step, for the first `len(costs)` roles of `ROLES`.
    """
    costs_at = _ROWS.index("processor time for an env step")
    shown = [f"{sum(costs):.3f} ms", *(f"{cost:.3f}" for cost in costs)]
    column = [f"{rate:.1f}", *[""] * (costs_at - 1), *shown]
    return column + [""] * (len(_ROWS) - len(column))


def _column(
    train: TrainConfig,
    rates: Sequence[float],
    runs: Sequence[MeasuredRun],
    bound: float,
    stepped: float,
) -> list[str]:
    rate = statistics.median(rates)

    def time_of(key: str) -> float:
        return statistics.median(run.times[key] for run in runs)

    costs = [statistics.median(run.cpu_ms[role] for run in runs) for role in ROLES]
    total = 1000 * num_cores() / rate
    rows = rate * train.env.num_columns / time_of("inference_passes_per_second")
    return [
        f"{rate:.1f}",
        f"{(max(rates) - min(rates)) / rate:.1%}",
        f"{rate / bound:.1%}",
        f"{rate / stepped:.1%}",
        *(f"{time_of(f'{role}_busy'):.0%}" for role in ROLES),
        f"{time_of('collecting'):.0%}",
        f"{time_of('barrier'):.1%}",
        f"{rows:.1f} of {train.actors.inference_batch}",
        f"{statistics.median(run.pss_mb for run in runs):.0f} MiB",
        f"{total:.3f} ms",
        *(f"{cost:.3f}" for cost in costs),
        f"{total - sum(costs):.3f}",
    ]


def _warnings(runs: Sequence[MeasuredRun]) -> Iterator[str]:
    disturbed = sum(not is_quiet(run) for run in runs)
    if disturbed:
        yield (
            f"other processes were busy before {disturbed} of {len(runs)} runs: "
            "the figures of these runs are unreliable; repeat the benchmark on a quiet machine"
        )
