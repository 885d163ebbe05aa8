"""`htsrl bench` under `torchrun`: the throughput of all ranks, and what their exchanges cost.

Each round measures one run of all ranks for every runner in `bench.runners`, and one run of a
single process with a machine's share of the environments. The benchmark also measures how long
ranks take to sum gradients, and how long torch's `all_reduce` takes for the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from htsrl_cli.bench.benchmark import RESULT_FILE
from htsrl_cli.bench.measured_run import MeasuredRun, measure, train_command
from htsrl_cli.config.sections import BenchConfig, TrainConfig
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import UsageError
from htsrl_cli.machine import num_cores
from htsrl_cli.networks.registry import initial_policies
from htsrl_cli.ranks.environment import (
    NEEDED,
    RUN_NUMBER,
    is_started_by_torchrun,
    num_local_ranks,
)
from htsrl_cli.ranks.group import Group, joined

logger = logging.getLogger(__name__)

# Number of sums whose median duration is measured.
_SUMS = 20


def run_benchmark(
    config: BenchConfig, train: TrainConfig, words: Sequence[str], folder: Path
) -> float:
    """Measures all rounds as rank 0, prints the table, and writes `bench.json`.

    Args:
        train: the configuration composed from `words`.
        words: overrides for `htsrl train`, without the runner.
        folder: the folder in which `bench.json` is written.

    Returns:
        The median env steps per second of all ranks with the first runner.

    Raises:
        UsageError: the ranks were not started by `torchrun`, or cannot share the run.
        RunError: a run failed.
    """
    runs: dict[str, list[MeasuredRun]] = {}
    starts = count(1)
    with joined() as group:
        _check(group, train)
        sums = group.broadcast(("sum", _num_parameters(train)))
        exchange = _sum_times(group, sums[1])
        for number in range(config.repeats):
            for runner in config.runners:
                of_one = [*words, f"runner={runner}", *_share(group, train)]
                alone = measure(f"{runner}, one process", of_one, config.seconds, _without_ranks())
                of_all = [*words, f"runner={runner}"]
                group.broadcast(("train", of_all))
                together = measure(runner, of_all, config.seconds, _of_run(next(starts)))
                group.gather(None)
                for run in (alone, together):
                    runs.setdefault(run.name, []).append(run)
                    logger.info("round %d: %s %.1f env steps/s", number + 1, run.name, run.rate)
        group.broadcast(None)
        num_machines = group.size // num_local_ranks()
    console = Console()
    console.print(_table(runs, group.size, num_machines, exchange))
    report = {
        "machine": {"cores": num_cores(), "platform": platform.platform()},
        "words": list(words),
        "ranks": group.size,
        "machines": num_machines,
        "exchange": exchange,
        "runs": [asdict(run) for of_name in runs.values() for run in of_name],
    }
    (folder / RESULT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"raw figures: {folder / RESULT_FILE}")
    return statistics.median(run.rate for run in runs[config.runners[0]])


def follow() -> None:
    """Takes part in the measurements as another rank than rank 0.

    Raises:
        HtsrlError: rank 0 has ended, or the ranks cannot share the run.
    """
    starts = count(1)
    with joined() as group:
        while order := group.broadcast(None):
            if isinstance(order, UsageError):
                raise order
            what, argument = order
            if what == "sum":
                _sum_times(group, argument)
                continue
            with tempfile.TemporaryDirectory(prefix="htsrl-bench-") as folder:
                command = train_command(argument, Path(folder) / "run")
                subprocess.run(command, env=_of_run(next(starts)), check=False)
            group.gather(None)


def _check(group: Group, train: TrainConfig) -> None:
    """Raises `UsageError` here and in all ranks if they cannot share the run."""
    problem = None
    if not is_started_by_torchrun():
        problem = "bench: start several ranks with torchrun"
    elif train.learner.num_shards % group.size:
        problem = (
            f"learner.num_shards={train.learner.num_shards}: cannot be divided among {group.size} "
            "ranks: start a number of ranks that divides it"
        )
    if problem:
        raise group.broadcast(UsageError(problem))


def _num_parameters(train: TrainConfig) -> int:
    with closing(make_env(train.env, index=-1)) as env:
        policies = initial_policies(env.env_spec, train.network, train.algo, train.seed)
    return sum(parameter.numel() for parameter in policies.parameters())


def _share(group: Group, train: TrainConfig) -> list[str]:
    """Returns the words that give one process the environments of one machine's ranks."""
    num_machines = group.size // num_local_ranks()
    return [
        f"actors.num_envs={train.actors.num_envs // num_machines}",
        f"learner.num_shards={train.learner.num_shards // num_machines}",
    ]


def _without_ranks() -> dict[str, str]:
    """Returns the environment variables of a process that is no rank."""
    return {name: value for name, value in os.environ.items() if name not in NEEDED}


def _of_run(number: int) -> dict[str, str]:
    """Returns the environment variables of run number 1, 2 and so on of all ranks.

    Each run has another number, so that it does not find what an earlier run has left in the store
    through which ranks find each other.
    """
    return os.environ | {RUN_NUMBER: str(number)}


def _sum_times(group: Group, num_parameters: int) -> dict[str, float]:
    """Returns the median seconds of a sum by `Group.sum` and by torch's `all_reduce`."""
    gradient, losses = torch.zeros(num_parameters), torch.zeros(1, 1, 1, 4)
    ways: dict[str, Callable[[], object]] = {
        "sum_s": lambda: group.sum([gradient], losses),
        "all_reduce_s": lambda: dist.all_reduce(gradient),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_SUMS):
        for name, sum_up in ways.items():
            began = time.perf_counter()
            sum_up()
            found[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return medians | {"megabytes": gradient.nbytes / 1e6}


def _table(
    runs: Mapping[str, Sequence[MeasuredRun]],
    size: int,
    num_machines: int,
    exchange: Mapping[str, float],
) -> Table:
    """Returns a table of medians, with a row for each kind of run."""
    table = Table(
        "",
        "env steps/s",
        "efficiency",
        "exchange",
        "learner busy",
        "slot filled after",
        title=f"{size} ranks on {num_machines} machine(s)",
        caption=f"sum of {exchange['megabytes']:.1f} MB: {1000 * exchange['sum_s']:.1f} ms, "
        f"all_reduce: {1000 * exchange['all_reduce_s']:.1f} ms",
    )
    for name, of_name in runs.items():
        rate = statistics.median(run.rate for run in of_name)
        alone = runs.get(f"{name}, one process")
        cells = ["", ""]
        if alone:
            bound = num_machines * statistics.median(run.rate for run in alone)
            cells = [f"{rate / bound:.0%}", _share_of_time(of_name, "exchange")]
        others = [_share_of_time(of_name, key) for key in ("learner_busy", "collecting")]
        table.add_row(name, f"{rate:.1f}", *cells, *others)
    return table


def _share_of_time(runs: Sequence[MeasuredRun], key: str) -> str:
    return f"{statistics.median(run.times[key] for run in runs):.0%}"
