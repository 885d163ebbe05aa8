"""A training run of which throughput, load and memory are measured.

The run is `htsrl train` in a fresh process, stopped by SIGTERM after the requested time. Rates
exclude the time before the first line of metrics: start-up and at least the first rollout, during
which the learner has no data.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from htsrl_cli.errors import RunError
from htsrl_cli.tracking.lines import training_lines

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
from htsrl_cli.lifetime import ask_to_end_with_parent
ask_to_end_with_parent()
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


def train_command(words: Sequence[str], run_dir: Path) -> list[str]:
    """Returns the command line of an endless run, which is killed when this process ends.

    Args:
        words: overrides for `htsrl train`.
    """
    code = _TRAIN.format(parent=os.getpid())
    options = [f"log.interval={_LOG_INTERVAL}", *words, f"total_steps={_ENDLESS}"]
    return [sys.executable, "-c", code, "train", *options, f"hydra.run.dir={run_dir}"]


def measure(
    name: str, words: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None
) -> MeasuredRun:
    """Measures `htsrl train WORDS` for at least `seconds` after its first line of metrics.

    Args:
        name: the `name` of the result.
        words: overrides for `htsrl train`.
        seconds: minimum duration of the measurement.
        environ: environment variables of the run; None leaves them as they are here.

    Raises:
        RunError: the run failed.
    """
    busy = busy_cores()
    with tempfile.TemporaryDirectory(prefix="htsrl-bench-") as folder:
        run_dir = Path(folder) / "run"
        command = train_command(words, run_dir)
        output = Path(folder) / "output"
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environ
            )
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
