"""Comparison of learning: `hts` against `sync` and bf16 against fp32, over several seeds.

    python -m scripts.compare_learning --seeds 5

Each run is `htsrl train` in a process of its own. Two figures are compared: the mean return over
the whole training, which slow learning lowers, and the mean return of the last 100 episodes. A
difference is a variant's mean over its seeds minus the mean of its baseline. The variant is worse
if the 95 % bootstrap confidence interval of the difference is entirely below zero.
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

from htsrl_cli.machine import has_bf16
from htsrl_cli.tracking.bootstrap import CONFIDENCE, NUM_RESAMPLES
from htsrl_cli.tracking.lines import training_lines
from scripts.provenance import result_path, write_result
from scripts.reference.markdown import table

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
    """Scores of a run.

    Attributes:
        whole: mean return over the whole training, with equal weight for each line of metrics.
        last: mean return of the last 100 episodes.
    """

    task: str
    variant: str
    seed: int
    whole: float
    last: float


@dataclass(frozen=True)
class Difference:
    """Difference of means over seeds, variant minus baseline, with a 95 % confidence interval."""

    task: str
    figure: str
    variant: str
    baseline: str
    mean: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        """True if the confidence interval is entirely below zero."""
        return self.high < 0


def train(task: str, variant: str, seed: int) -> Trained:
    """Runs a complete training; prints and returns its scores."""
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
    """Returns the difference between a variant and its baseline on a task.

    Args:
        figure: `whole` or `last`, the attribute of `Trained` to compare.
        pair: names of the variant and of the baseline.
    """
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


def means_table(runs: Sequence[Trained]) -> str:
    """Returns a Markdown table with a row for each combination of task and variant.

    It shows the mean and the standard deviation, over seeds, of `whole` and of `last`.
    """
    rows = []
    for task, variant in dict.fromkeys((run.task, run.variant) for run in runs):
        own = [run for run in runs if (run.task, run.variant) == (task, variant)]
        whole, last = (
            f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
            for values in ([run.whole for run in own], [run.last for run in own])
        )
        rows.append((task, variant, whole, last, str(len(own))))
    header = ("task", "variant", "return, whole training", "return, last 100 episodes", "seeds")
    return table(header, rows)


def print_differences(differences: Sequence[Difference]) -> None:
    """Prints each difference between a variant and its baseline, with the verdict."""
    for d in differences:
        verdict = "WORSE" if d.worse else "not worse"
        print(
            f"  {d.task}, {d.figure}: {d.variant} - {d.baseline} = {d.mean:.2f} "
            f"({d.low:.2f} to {d.high:.2f}): {verdict}"
        )


def main() -> int:
    """Runs and compares all variants; returns 1 if one is worse than its baseline, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds per variant (default: 5)")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs (default: 2)")
    parser.add_argument("--output", type=Path, default=result_path("compare_learning"))
    args = parser.parse_args()
    variants = [name for name in VARIANTS if has_bf16() or "bf16" not in name]
    if len(variants) < len(VARIANTS):
        print("This processor has no bf16 instructions: fp32 only")
    jobs = [(t, v, s) for t in TASKS for s in range(1, args.seeds + 1) for v in variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda job: train(*job), jobs))
    differences = [
        difference(runs, task, figure, pair)
        for task in TASKS
        for figure in ("whole", "last")
        for pair in COMPARED
        if set(pair) <= set(variants)
    ]
    print(means_table(runs))
    print_differences(differences)
    report = {
        "tasks": TASKS,
        "variants": VARIANTS,
        "runs": [asdict(run) for run in runs],
        "differences": [asdict(d) | {"worse": d.worse} for d in differences],
    }
    write_result(args.output, report)
    return int(any(d.worse for d in differences))


if __name__ == "__main__":
    raise SystemExit(main())
