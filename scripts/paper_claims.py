"""Measurements of the HTS-RL paper's throughput claims (arXiv 2012.09849).

    python -m scripts.paper_claims --seconds 15

Each run is `htsrl train` in a fresh process. Where throughput is measured, environments only sleep,
for 10 ms per env step on average, and each environment has its own executor. Four series are
measured, plotted and written to a JSON file:

    variance      Fig. 4 left: throughput of `hts` and `sync` against the variation of step times
    environments  Fig. 4 right: throughput of `hts` and `sync` against the number of environments
    interval      Table 5: throughput of `hts` against the sync interval, with Claim 1's prediction
    actors        Table 4: throughput of `hts` against the number of actors; also the hashes of
                  runs that differ only in this number (on environments that do not sleep)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from htsrl_cli.bench.benchmark import MeasuredRun, measure
from scripts.asynchrony import MEAN_S, NUM_ENVS, RUNNERS, SYNC_INTERVAL, claim_1_seconds
from scripts.measured_runs import show
from scripts.provenance import result_path, write_result

# Shapes of gamma distributions; the standard deviation is the mean / sqrt(shape).
SHAPES = (16.0, 4.0, 1.0, 0.25)
ENVIRONMENTS = (1, 4, 16, 64)
INTERVALS = (4, 16, 64, 128, 256, 512)
ACTORS = (1, 2, 4, 8)
# Labels of the horizontal axes, by series.
LABELS = {
    "variance": "standard deviation of a step / mean",
    "environments": "environments",
    "interval": "sync interval",
    "actors": "actors",
}
# Figures: their names, and the series that each shows.
FIGURES = {"steps": ("variance", "environments"), "rollouts": ("interval", "actors")}
# Env steps of the runs whose hashes are compared: 40 rollouts of 16 env steps per environment.
HASHED_STEPS = 40 * NUM_ENVS * 16


@dataclass(frozen=True)
class Point:
    """A point of a curve: the measured or predicted rate of a run.

    Attributes:
        x: value on the horizontal axis of the series.
        line: name of the curve.
        rate: env steps per second.
    """

    x: float
    line: str
    rate: float


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


def actors(seconds: float) -> tuple[list[Point], dict[int, dict[str, str]]]:
    """Measures Table 4: throughput against the number of actors, and hashes of complete runs.

    Returns:
        The points, and the hashes of a complete run for each number of actors.
    """
    points, hashes = [], {}
    for number in ACTORS:
        words = [f"actors.num_actors={number}", *gamma_words(1.0)]
        points.append(Point(number, "hts", run(f"{number} actors", seconds, words).rate))
        hashes[number] = hashes_of(number)
    return points, hashes


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


def draw(series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draws a panel for each series and writes the figure to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    size = (4.5 * len(series), 3.6)
    figure, axes = plt.subplots(1, len(series), figsize=size, layout="constrained")
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        for line in dict.fromkeys(point.line for point in points):
            own = [point for point in points if point.line == line]
            axis.plot([p.x for p in own], [p.rate for p in own], marker="o", label=line)
        if name in ("environments", "interval"):
            axis.set_xscale("log", base=2)
        axis.set_ylim(0, 1.15 * max(point.rate for point in points))
        axis.set_xlabel(LABELS[name])
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("env steps per second")
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
    args = parser.parse_args()
    series = {
        "variance": variance(args.seconds),
        "environments": environments(args.seconds),
        "interval": interval(args.seconds),
    }
    series["actors"], hashes = actors(args.seconds)
    report = {
        "series": {name: [asdict(point) for point in points] for name, points in series.items()},
        "hashes": hashes,
    }
    write_result(args.output, report)
    for name, panels in FIGURES.items():
        path = args.output.with_name(f"{args.output.stem}_{name}.png")
        draw({panel: series[panel] for panel in panels}, path)
    equal = len({json.dumps(entry) for entry in hashes.values()}) == 1
    print(f"hashes of runs with different numbers of actors: {'equal' if equal else 'DIFFERENT'}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
