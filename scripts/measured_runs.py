"""Training runs as a user starts them, in fresh processes, and the rates that are read off them."""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.25
# A run beside processes that keep more of a core busy than this says little.
QUIET_CORES = 0.2
# A run that has to end may finish its interval and write a checkpoint.
GRACE_S = 120.0

Line = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One run.

    Attributes:
        name: of what was run.
        rate: env steps per second from the end of the first interval to the last line.
        env_steps, seconds: what the rate was taken over.
        busy_cores_before: cores that other processes kept busy in the second before the run.
    """

    name: str
    rate: float
    env_steps: int
    seconds: float
    busy_cores_before: float

    @classmethod
    def of(cls, name: str, lines: Sequence[Line], busy_cores_before: float) -> Measurement:
        """Reads the steady rate off lines with `env_steps` and `time/seconds`.

        Start-up and the first interval, in which nothing is learned, lie before the first line.
        """
        if len(lines) < 2:
            raise SystemExit(f"{name}: the run made {len(lines)} intervals; measure for longer")
        steps = lines[-1]["env_steps"] - lines[0]["env_steps"]
        seconds = lines[-1]["time/seconds"] - lines[0]["time/seconds"]
        return cls(name, steps / seconds, steps, seconds, busy_cores_before)

    def show(self) -> None:
        """Prints the run's figures in a line."""
        print(
            f"  {self.name:<16} {self.rate:9.1f} env steps/s   ({self.env_steps} in "
            f"{self.seconds:.1f} s; {self.busy_cores_before:.2f} cores busy before)",
            flush=True,
        )


def busy_cores() -> float:
    """How many cores are busy at present, over one second."""
    return float(psutil.cpu_percent(1.0)) / 100 * num_cores()


def num_cores() -> int:
    """Of this machine."""
    return os.cpu_count() or 1


def train(words: Sequence[str], run_dir: Path, seconds: float | None = None) -> list[Line]:
    """Runs `htsrl train WORDS` with a line of metrics for every interval; returns the lines.

    Args:
        words: overrides; they must give `total_steps` where `seconds` is None.
        run_dir: the run's folder, which must not exist; the process's output goes beside it.
        seconds: stop the run by SIGTERM so long after its first line.
    """
    command = [sys.executable, "-m", "htsrl_cli", "train", *words]
    command += ["log.interval=1", f"checkpoint.interval={10**12}", f"hydra.run.dir={run_dir}"]
    if seconds is not None:
        command.append(f"total_steps={10**12}")
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    output = run_dir.with_suffix(".log")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(output, "wb") as file:
        environment = {**os.environ, "PYTHONPATH": path}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            if seconds is not None:
                _stop_after(seconds, process, run_dir)
            code = process.wait()
        finally:
            process.kill()
    if code != (0 if seconds is None else 128 + signal.SIGTERM):
        raise SystemExit(f"{' '.join(command)}\nended with {code}:\n{output.read_text()[-2000:]}")
    return read_lines(run_dir)


def _stop_after(seconds: float, process: subprocess.Popen[bytes], run_dir: Path) -> None:
    while process.poll() is None:
        time.sleep(POLL_S)
        lines = read_lines(run_dir)
        if lines and lines[-1]["time/seconds"] - lines[0]["time/seconds"] >= seconds:
            process.send_signal(signal.SIGTERM)
            process.wait(GRACE_S)


def read_lines(run_dir: Path) -> list[Line]:
    """The lines of a run's `metrics.jsonl`; none where it is not there yet."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def median(measurements: Sequence[Measurement], name: str) -> float:
    """Of the rates of the runs called `name`."""
    return statistics.median(rates(measurements, name))


def rates(measurements: Sequence[Measurement], name: str) -> list[float]:
    """Of the runs called `name`, in order."""
    return [measurement.rate for measurement in measurements if measurement.name == name]


def show_medians(measurements: Sequence[Measurement]) -> None:
    """Prints median and spread for every name."""
    for name in dict.fromkeys(measurement.name for measurement in measurements):
        values = rates(measurements, name)
        middle = statistics.median(values)
        print(
            f"  {name:<16} median {middle:.1f}, from {min(values):.1f} to {max(values):.1f} "
            f"({(max(values) - min(values)) / middle:.1%} of the median), {len(values)} runs"
        )
    disturbed = sum(m.busy_cores_before > QUIET_CORES for m in measurements)
    if disturbed:
        print(
            f"  WARNING: other processes were busy before {disturbed} of {len(measurements)} runs "
            "(see above): these figures do not hold; repeat on a quiet machine"
        )


@dataclass(frozen=True)
class Comparison:
    """A figure and what it has to reach."""

    name: str
    value: float
    low: float
    high: float = float("inf")

    @property
    def holds(self) -> bool:
        """Whether the value lies within its limits."""
        return self.low <= self.value <= self.high

    def show(self) -> None:
        """Prints value, target and verdict in a line."""
        target = f"at least {self.low:g}"
        if self.high < float("inf"):
            target = f"{self.low:g} to {self.high:g}"
        verdict = "reached" if self.holds else "MISSED"
        print(f"  {self.name}: {self.value:.3f} (target: {target}; {verdict})")


def write_report(
    path: Path,
    measurements: Sequence[Measurement],
    comparisons: Sequence[Comparison],
    figures: Mapping[str, Any],
) -> None:
    """Writes all figures as JSON."""
    report = {
        "machine": {"cores": num_cores(), "platform": platform.platform()},
        "runs": [asdict(measurement) for measurement in measurements],
        "comparisons": [
            {"name": c.name, "value": c.value, "low": c.low, "holds": c.holds} for c in comparisons
        ],
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{path} has all figures")
