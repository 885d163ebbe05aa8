"""Tests whether speed costs learning: `hts` against `sync`, bf16 against fp32, several seeds.

    python -m scripts.compare_learning --seeds 5

Every run is `htsrl train` in a process of its own. Two figures of a run are compared: the
mean return over all of the training, which a slower learner lowers, and the mean return of the last
100 episodes. A variant is worse where the 95 % bootstrap interval of the difference of the means
over seeds lies below zero.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.stats

from htsrl_cli.tracking.bootstrap import CONFIDENCE, NUM_RESAMPLES
from htsrl_cli.tracking.lines import training_lines

TASKS = {
    "CartPole, PPO": ["experiment=cartpole_ppo"],
    "CartPole, A2C": ["experiment=cartpole_a2c"],
    "Acrobot, PPO": ["experiment=cartpole_ppo", "env.id=Acrobot-v1", "algo.gamma=0.99"],
}
VARIANTS = {
    "sync fp32": ["runner=sync"],
    "hts fp32": ["runner=hts"],
    "hts bf16": ["runner=hts", "actors.precision=bf16", "learner.precision=bf16"],
}
COMPARED = [("hts fp32", "sync fp32"), ("hts bf16", "hts fp32")]


@dataclass(frozen=True)
class Trained:
    """The scores of a run.

    Attributes:
        whole: mean of the returns over equal stretches of env steps.
        last: mean return of the last 100 episodes.
    """

    task: str
    variant: str
    seed: int
    whole: float
    last: float


@dataclass(frozen=True)
class Difference:
    """The difference of means over seeds, variant minus baseline, with its 95 % interval."""

    task: str
    figure: str
    variant: str
    baseline: str
    mean: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        """The variant is worse by more than chance."""
        return self.high < 0


def train(task: str, variant: str, seed: int) -> Trained:
    """A whole run."""
    words = [*TASKS[task], *VARIANTS[variant], f"seed={seed}", "log.tensorboard=false"]
    with tempfile.TemporaryDirectory(prefix="compare-learning-") as folder:
        command = [sys.executable, "-m", "htsrl_cli", "train", *words, f"hydra.run.dir={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        returns = [line["episode/return_mean"] for line in training_lines(Path(folder))]
        last = json.loads((Path(folder) / "summary.json").read_text())["metric"]
    whole = statistics.fmean(value for value in returns if value is not None)
    print(f"  {task:<14} {variant:<9} seed {seed}: {whole:8.2f} {last:8.2f}", flush=True)
    return Trained(task, variant, seed, whole, last)


def difference(
    runs: Sequence[Trained], task: str, figure: str, pair: tuple[str, str]
) -> Difference:
    """Compares two variants in one figure of a task."""
    samples = [
        np.array([getattr(run, figure) for run in runs if (run.task, run.variant) == (task, name)])
        for name in pair
    ]
    interval = scipy.stats.bootstrap(
        samples,
        lambda ours, theirs, axis: np.mean(ours, axis=axis) - np.mean(theirs, axis=axis),
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    mean = float(samples[0].mean() - samples[1].mean())
    return Difference(task, figure, *pair, mean, float(interval.low), float(interval.high))


def print_table(runs: Sequence[Trained], differences: Sequence[Difference]) -> None:
    """Means over seeds, and differences, in Markdown."""
    print("\n| task | variant | mean return of the training | of the last 100 episodes |")
    print("|---|---|---:|---:|")
    for task in TASKS:
        for variant in VARIANTS:
            own = [run for run in runs if (run.task, run.variant) == (task, variant)]
            whole, last = (
                f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
                for values in ([run.whole for run in own], [run.last for run in own])
            )
            print(f"| {task} | {variant} | {whole} | {last} |")
    print()
    for d in differences:
        verdict = "WORSE" if d.worse else "not worse"
        print(
            f"  {d.task}, {d.figure}: {d.variant} - {d.baseline} = {d.mean:.2f} "
            f"({d.low:.2f} to {d.high:.2f}): {verdict}"
        )


def main() -> int:
    """Runs everything; the exit code is 1 where a variant is worse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="of every variant (default: 5)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument(
        "--output", type=Path, default=Path("scripts/results/compare_learning.json")
    )
    args = parser.parse_args()
    jobs = [(t, v, s) for t in TASKS for s in range(1, args.seeds + 1) for v in VARIANTS]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda job: train(*job), jobs))
    differences = [
        difference(runs, task, figure, pair)
        for task in TASKS
        for figure in ("whole", "last")
        for pair in COMPARED
    ]
    print_table(runs, differences)
    report = {
        "tasks": TASKS,
        "variants": VARIANTS,
        "runs": [asdict(run) for run in runs],
        "differences": [asdict(d) | {"worse": d.worse} for d in differences],
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{args.output} has all figures")
    return int(any(d.worse for d in differences))


if __name__ == "__main__":
    raise SystemExit(main())
