"""Measurements of the HTS-RL paper's throughput claims (arXiv 2012.09849).

    python -m scripts.paper_claims --seconds 15

Each run is `htsrl train` in a fresh process. Where throughput is measured, environments only sleep,
for 10 ms per env step on average, and each environment has its own executor. Five series are
measured, plotted and written to a JSON file:

    variance      Fig. 4 left: throughput of `hts` and `sync` against the variation of step times
    environments  Fig. 4 right: throughput of `hts` and `sync` against the number of environments
    interval      Table 5: throughput of `hts` against the sync interval, with Claim 1's prediction
    actors        Table 4: throughput of `hts` against the number of actors; also the hashes of
                  runs that differ only in this number (on environments that do not sleep)
    lag           Claim 2: updates made while an unroll waits in the queue of `runner=async`,
                  against the learner's load
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from htsrl_cli.bench.measured_run import MeasuredRun, measure
from htsrl_cli.sampling.schedule import SCHEDULE_FILE
from htsrl_cli.tracking.lines import training_lines
from scripts.asynchrony import MEAN_S, NUM_ENVS, RUNNERS, SYNC_INTERVAL, claim_1_seconds
from scripts.interruption import exit_on_sigterm
from scripts.measured_runs import show
from scripts.provenance import result_path, write_result

# Shapes of gamma distributions; the standard deviation is the mean / sqrt(shape).
SHAPES = (16.0, 4.0, 1.0, 0.25)
ENVIRONMENTS = (1, 4, 16, 64)
INTERVALS = (4, 16, 64, 128, 256, 512)
ACTORS = (1, 2, 4, 8)
# Series `lag`: numbers of environments. Each gives the learner a load of about 1/16, because an env
# step takes sixteen times as long as an update. Updates take 80 ms on average, so that their fixed
# costs, which Claim 2 does not know, are small.
SENDERS = (4, 6, 8, 10, 12)
SERVICE_MS = 80.0
SENDER_LOAD = 1 / 16
# Its runs are this much longer than the others: lags of successive unrolls are correlated. They
# take place at the same time, because they sleep for most of it.
LONGER = 30
# Labels of the horizontal axes, by series.
LABELS = {
    "variance": "standard deviation of a step / mean",
    "environments": "environments",
    "interval": "sync interval",
    "actors": "actors",
    "lag": "load of the learner",
}
RATE = "env steps per second"
# Figures: their names, and the series that each shows.
FIGURES = {
    "steps": ("variance", "environments"),
    "rollouts": ("interval", "actors"),
    "lag": ("lag",),
}
# Env steps of the runs whose hashes are compared: 40 rollouts of 16 env steps per environment.
HASHED_STEPS = 40 * NUM_ENVS * 16


@dataclass(frozen=True)
class Point:
    """A point of a curve: a measured or predicted value of a run.

    Attributes:
        x: value on the horizontal axis of the series.
        line: name of the curve.
        y: env steps per second; in the series `lag`, policy lag in updates.
    """

    x: float
    line: str
    y: float


def run(name: str, seconds: float, words: Sequence[str], num_envs: int = NUM_ENVS) -> MeasuredRun:
    """Measures one run of A2C on sleeping environments; prints and returns its figures."""
    base = [
        "env=synthetic/sleep",
        f"env.mean_ms={1000 * MEAN_S:g}",
        "algo=a2c",
        f"runner.sync_interval={SYNC_INTERVAL}",
        f"actors.num_envs={num_envs}",
        f"actors.num_executors={num_envs}",
        "log.interval=1",
    ]
    return show(measure(name, [*base, *words], seconds))


def gamma_words(shape: float) -> list[str]:
    """Returns the overrides that give step times a gamma distribution of this shape."""
    return ["env.distribution=gamma", f"env.shape={shape:g}"]


def variance(seconds: float) -> list[Point]:
    """Measures Fig. 4 left: throughput against the variation of step times."""
    points = []
    for runner in RUNNERS:
        words = [f"runner={runner}", "env.distribution=constant"]
        points.append(Point(0.0, runner, run(f"{runner} constant", seconds, words).rate))
        for shape in SHAPES:
            words = [f"runner={runner}", *gamma_words(shape)]
            rate = run(f"{runner} shape {shape:g}", seconds, words).rate
            points.append(Point(shape**-0.5, runner, rate))
    return points


def environments(seconds: float) -> list[Point]:
    """Measures Fig. 4 right: throughput against the number of environments."""
    return [
        Point(number, runner, run(f"{runner} {number} envs", seconds, words, number).rate)
        for number in ENVIRONMENTS
        for runner in RUNNERS
        for words in [[f"runner={runner}", *gamma_words(1.0)]]
    ]


def interval(seconds: float) -> list[Point]:
    """Measures Table 5, throughput against the sync interval, and computes Claim 1's prediction.

    The cost of an env step beyond its step time is measured with one environment and constant step
    times.
    """
    words = ["env.distribution=constant"]
    actor_s = 1 / run("one environment", seconds, words, num_envs=1).rate - MEAN_S
    points = []
    for alpha in INTERVALS:
        words = [f"runner.sync_interval={alpha}", *gamma_words(1.0)]
        points.append(Point(alpha, "hts", run(f"alpha {alpha}", seconds, words).rate))
        predicted = 1 / claim_1_seconds(1, NUM_ENVS, alpha, MEAN_S, actor_s)
        points.append(Point(alpha, "Claim 1", predicted))
    return points


def actors(seconds: float) -> list[Point]:
    """Measures Table 4: throughput against the number of actors."""
    points = []
    for number in ACTORS:
        words = [f"actors.num_actors={number}", *gamma_words(1.0)]
        points.append(Point(number, "hts", run(f"{number} actors", seconds, words).rate))
    return points


def claim_2_lag(load: float) -> float:
    """Returns the expected policy lag by Claim 2 of the paper, in updates.

    The claim is the mean number of unrolls that an arriving unroll finds in an M/M/1 queue:
    n rho / (1 - n rho). It holds if unrolls arrive independently at exponentially distributed
    intervals, updates take exponentially distributed times, and the queue has no end.

    Args:
        load: n rho, the rate at which all environments send unrolls, divided by the rate of the
            learner; less than 1.
    """
    return load / (1 - load)


def lag(seconds: float) -> list[Point]:
    """Measures Claim 2: the policy lag that the queue adds, against the learner's load.

    An unroll is one env step, and an update uses one unroll. Updates that are made during an unroll
    are not counted, because Claim 2 does not count them.
    """
    points = []
    with ThreadPoolExecutor(len(SENDERS)) as pool:
        queues = list(pool.map(lambda number: queue_of(number, LONGER * seconds), SENDERS))
    for number, (load, waited) in zip(SENDERS, queues, strict=True):
        points.append(Point(load, "runner=async", waited))
        points.append(Point(load, "Claim 2", claim_2_lag(load)))
        claim = claim_2_lag(load)
        print(f"  {number} envs: load {load:.3f}, lag {waited:.3f}, by Claim 2 {claim:.3f}")
    return points


def queue_of(num_envs: int, seconds: float) -> tuple[float, float]:
    """Runs `runner=async`; returns the learner's load and an unroll's mean wait, in updates."""
    step_ms = SERVICE_MS / SENDER_LOAD
    steps = round(num_envs * seconds / (step_ms / 1000))
    words = [
        "env=synthetic/sleep",
        f"env.mean_ms={step_ms:g}",
        "env.distribution=exponential",
        "env.step_timeout_s=600",
        "algo=impala",
        "network.name=scripts.sleeping_network:SleepingNetwork",
        f"+network.kwargs.mean_ms={SERVICE_MS:g}",
        "runner=async",
        "runner.sync_interval=1",
        "runner.unrolls_per_update=1",
        "runner.spare_unrolls=1000",
        "runner.record=true",
        f"actors.num_envs={num_envs}",
        f"actors.num_executors={num_envs}",
        f"total_steps={steps}",
        f"log.interval={steps}",
    ]
    with tempfile.TemporaryDirectory(prefix="paper-claims-") as folder:
        command = [sys.executable, "-m", "htsrl_cli", "train", *words, f"hydra.run.dir={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        schedule = Path(folder, SCHEDULE_FILE).read_text().splitlines()[1:]
        (metrics,) = training_lines(Path(folder))
    waited = [count for line in schedule for count in json.loads(line)["waited"]]
    return float(metrics["time/learner_busy"]), float(np.mean(waited))


def hashes_of(num_actors: int) -> dict[str, str]:
    """Trains a complete run with `num_actors` actors; returns its hashes by name."""
    words = [
        "env=synthetic/count",
        "algo=a2c",
        f"actors.num_envs={NUM_ENVS}",
        f"actors.num_actors={num_actors}",
        "runner.sync_interval=16",
        f"total_steps={HASHED_STEPS}",
    ]
    with tempfile.TemporaryDirectory(prefix="paper-claims-") as folder:
        command = [sys.executable, "-m", "htsrl_cli", "train", *words, f"hydra.run.dir={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        summary = json.loads((Path(folder) / "summary.json").read_text())
    return {name: summary[name] for name in summary if name.endswith("sha256")}


SERIES = {
    "variance": variance,
    "environments": environments,
    "interval": interval,
    "actors": actors,
    "lag": lag,
}


def draw(series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draws a panel for each series and writes the figure to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    size = (4.5 * len(series), 3.6)
    figure, (axes,) = plt.subplots(
        1, len(series), figsize=size, layout="constrained", squeeze=False
    )
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        for line in dict.fromkeys(point.line for point in points):
            own = [point for point in points if point.line == line]
            axis.plot([p.x for p in own], [p.y for p in own], marker="o", label=line)
        if name in ("environments", "interval"):
            axis.set_xscale("log", base=2)
        axis.set_ylim(0, 1.15 * max(point.y for point in points))
        axis.set_xlabel(LABELS[name])
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("policy lag in updates" if "lag" in series else RATE)
    figure.savefig(path, dpi=110)
    print(f"{path} written")


def main() -> int:
    """Measures and writes all series; returns 1 if the number of actors changes a hash, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds per run (default: 15)")
    parser.add_argument(
        "--output",
        type=Path,
        default=result_path("paper_claims"),
        help="JSON file; the plots are written beside it (default: %(default)s)",
    )
    parser.add_argument(
        "--series", nargs="+", choices=SERIES, default=list(SERIES), help="default: all"
    )
    args = parser.parse_args()
    exit_on_sigterm()
    series = {name: SERIES[name](args.seconds) for name in args.series}
    hashes = {number: hashes_of(number) for number in ACTORS} if "actors" in series else {}
    report = {
        "series": {name: [asdict(point) for point in points] for name, points in series.items()},
        "hashes": hashes,
    }
    write_result(args.output, report)
    for name, panels in FIGURES.items():
        path = args.output.with_name(f"{args.output.stem}_{name}.png")
        if series.keys() >= set(panels):
            draw({panel: series[panel] for panel in panels}, path)
    if not hashes:
        return 0
    equal = len({json.dumps(entry) for entry in hashes.values()}) == 1
    print(f"hashes of runs with different numbers of actors: {'equal' if equal else 'DIFFERENT'}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
