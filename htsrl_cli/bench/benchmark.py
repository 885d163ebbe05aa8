"""Measurement of training throughput and of what limits it, for `htsrl bench`.

Each run is `htsrl train` in a fresh process, stopped by SIGTERM after the requested time. Each
round measures one run of every runner in `bench.runners`. Rates exclude the time before the first
line of metrics: start-up and at least the first rollout, during which the learner has no data.
Each round also measures one-thread rates, from which an upper bound on the training rate is
computed (`microbenchmarks`). It also measures the rate at which all cores step environments if they
do nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from htsrl_cli.bench.env_rates import all_cores_env_rate
from htsrl_cli.bench.microbenchmarks import OneThread
from htsrl_cli.config.sections import BenchConfig, TrainConfig
from htsrl_cli.errors import RunError
from htsrl_cli.machine import num_cores
from htsrl_cli.tracking.lines import training_lines

logger = logging.getLogger(__name__)

RESULT_FILE = "bench.json"
ROLES = ("executors", "actors", "learner")
# A run's figures are unreliable if other processes keep more cores busy than this before the run.
QUIET_CORES = 0.2
_POLL_S = 0.1
# Seconds that a run may take to stop. It first finishes its rollout and writes a checkpoint.
_GRACE_S = 120.0
_ENDLESS = 10**12
# Env steps between two lines of metrics, unless the overrides set `log.interval`. A shorter period
# would slow the run.
_LOG_INTERVAL = 2000
# Code that runs `htsrl` in a child process, which is killed when this process ends for any reason.
_TRAIN = """
import os
from htsrl_cli.cli import main as cli
from htsrl_cli.workers import process as workers
workers.ask_to_end_with_parent()
raise SystemExit(cli.main() if os.getppid() == {parent} else 1)
"""


@dataclass(frozen=True)
class MeasuredRun:
    """The figures of one training run, measured from its first line of metrics on.

    Attributes:
        name: name of the runner, or another name that identifies the run.
        rate: env steps per second.
        env_steps: number of env steps over which `rate` was measured.
        seconds: seconds over which `rate` was measured.
        times: mean of each `time/` metric over all lines of metrics but the first, by name without
            `time/`.
        cpu_ms: CPU milliseconds per env step, by role. The learner's value covers the main process,
            including actors that run in it as threads, and all processes without a role.
        pss_mb: memory of all processes at the end, in MiB; shared pages are counted once.
        busy_cores_before: number of cores that were busy in the second before the run.
    """

    name: str
    rate: float
    env_steps: int
    seconds: float
    times: dict[str, float]
    cpu_ms: dict[str, float]
    pss_mb: float
    busy_cores_before: float


def is_quiet(run: MeasuredRun) -> bool:
    """Returns True if at most `QUIET_CORES` cores were busy before the run."""
    return run.busy_cores_before <= QUIET_CORES


def busy_cores() -> float:
    """Returns the number of busy cores, measured over one second."""
    return float(psutil.cpu_percent(1.0)) / 100 * (os.cpu_count() or 1)


def measure(name: str, words: Sequence[str], seconds: float) -> MeasuredRun:
    """Measures `htsrl train WORDS` for at least `seconds` after its first line of metrics.

    Args:
        name: the `name` of the result.
        words: overrides for `htsrl train`.
        seconds: minimum duration of the measurement.

    Raises:
        RunError: the run failed.
    """
    busy = busy_cores()
    with tempfile.TemporaryDirectory(prefix="htsrl-bench-") as folder:
        run_dir = Path(folder) / "run"
        code = _TRAIN.format(parent=os.getpid())
        options = [f"log.interval={_LOG_INTERVAL}", *words, f"total_steps={_ENDLESS}"]
        command = [sys.executable, "-c", code, "train", *options, f"hydra.run.dir={run_dir}"]
        output = Path(folder) / "output"
        with open(output, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        try:
            samples = _watch(process, run_dir, seconds)
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        finally:
            process.kill()
        status = process.wait()
        if status != 128 + signal.SIGTERM:
            text = output.read_text(errors="replace")[-2000:]
            raise RunError(
                f"htsrl {' '.join(command[3:])}\n"
                f"ended with exit status {status}; its last output:\n{text}"
            )
        lines = training_lines(run_dir)
    return summarize(name, lines, samples, busy)


@dataclass(frozen=True)
class Sample:
    """The CPU time and memory of a run at one moment.

    Attributes:
        at: time of the sample in seconds, from `time.monotonic`.
        cpu_s: CPU seconds used so far, by role; see `MeasuredRun.cpu_ms`.
        pss_mb: memory of all processes in MiB; shared pages are counted once.
    """

    at: float
    cpu_s: dict[str, float]
    pss_mb: float

    @classmethod
    def take(cls, main: psutil.Process) -> Sample:
        """Samples the run whose main process is `main`.

        Raises:
            psutil.Error: a process of the run has ended.
        """
        cpu_s = dict.fromkeys(ROLES, 0.0)
        pss_mb = 0.0
        for process in (main, *main.children(recursive=True)):
            # A worker's process name begins with its role, as in "executor 0".
            role = f"{process.name().split()[0]}s"
            times = process.cpu_times()
            cpu_s[role if role in ROLES else "learner"] += times.user + times.system
            pss_mb += process.memory_full_info().pss / 2**20
        return cls(time.monotonic(), cpu_s, pss_mb)


def _watch(
    process: subprocess.Popen[bytes], run_dir: Path, seconds: float
) -> tuple[Sample, Sample]:
    """Samples a run at its first line of metrics, and again at the end of the measurement.

    The measurement ends after `seconds`, but not before the second line of metrics.
    """
    while not training_lines(run_dir) and process.poll() is None:
        time.sleep(_POLL_S)
    first = _sample(process)
    while process.poll() is None and (
        time.monotonic() - first.at < seconds or len(training_lines(run_dir)) < 2
    ):
        time.sleep(_POLL_S)
    return first, _sample(process)


def _sample(process: subprocess.Popen[bytes]) -> Sample:
    try:
        return Sample.take(psutil.Process(process.pid))
    except psutil.Error:
        # The run has ended; `measure` reports its output.
        return Sample(time.monotonic(), dict.fromkeys(ROLES, 0.0), 0.0)


def summarize(
    name: str, lines: Sequence[dict[str, Any]], samples: tuple[Sample, Sample], busy: float
) -> MeasuredRun:
    """Computes the figures of a run from its metrics and samples.

    Args:
        name: the `name` of the result.
        lines: two or more lines of metrics.
        samples: the first and the last sample.
        busy: number of cores that were busy before the run.
    """
    env_steps = lines[-1]["env_steps"] - lines[0]["env_steps"]
    seconds = lines[-1]["time/seconds"] - lines[0]["time/seconds"]
    before, after = samples
    window_steps = env_steps / seconds * (after.at - before.at)
    return MeasuredRun(
        name,
        env_steps / seconds,
        env_steps,
        seconds,
        {
            key.removeprefix("time/"): statistics.fmean(line[key] for line in lines[1:])
            for key in lines[-1]
            if key.startswith("time/")
        },
        {role: 1000 * (after.cpu_s[role] - before.cpu_s[role]) / window_steps for role in ROLES},
        after.pss_mb,
        busy,
    )


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
