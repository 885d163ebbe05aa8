"""Comparison of learning: `hts` with each correction of policy lag against `sync`.

    python -m scripts.compare_learning --tasks CartPole Acrobot LunarLander --seeds 5

Each run is `htsrl train` in a process and a folder of its own. Start the same command again to go
on after an interruption: complete runs are not repeated, and others are resumed. Two figures are
compared: the mean return over the whole training, which slow learning lowers, and the mean return
of the last 100 episodes. MinAtar needs the package minatar.

The runs that stand for `hts` have `runner=serial`, which gives the same bits for less processor
time. Each run uses one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from htsrl_cli.envs.base import Array
from htsrl_cli.machine import has_bf16
from htsrl_cli.tracking.config_file import read_config
from htsrl_cli.tracking.lines import training_lines
from scripts.interruption import exit_on_sigterm
from scripts.learning_curve import random_scores
from scripts.learning_statistics import (
    Estimate,
    estimate,
    interquartile_mean,
    probability_of_improvement,
)
from scripts.measured_runs import compose, same_configurations
from scripts.provenance import ROOT, read_result, result_path, write_result
from scripts.reference.markdown import table

TASKS = {
    "CartPole": ["experiment=cartpole_ppo"],
    "Acrobot": [
        "experiment=cartpole_ppo",
        "env.id=Acrobot-v1",
        "algo.gamma=0.99",
        "total_steps=100_000",
    ],
    "LunarLander": ["env=gym", "env.id=LunarLander-v3", "algo=ppo", "total_steps=300_000"],
    **{
        f"MinAtar {game}": ["experiment=minatar_ppo", f"env.id=MinAtar/{game}-v1"]
        for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
    },
}
BASELINE = "sync"
# The variants of V-trace name their constant, which is a tuned setting of some tasks.
CORRECTIONS = {
    "none": ["algo.correction=none"],
    "proximal": ["algo.correction=proximal"],
    "decoupled": ["algo.correction=decoupled"],
    "vtrace": ["algo.correction=vtrace", "algo.vtrace_c=1.0"],
    "vtrace_c15": ["algo.correction=vtrace", "algo.vtrace_c=1.5"],
}
VARIANTS = {
    BASELINE: ["runner=sync", "actors.num_executors=1", "actors.num_actors=1"],
    **{name: ["runner=serial", *words] for name, words in CORRECTIONS.items()},
    "bf16": ["runner=serial", "actors.precision=bf16", "learner.precision=bf16"],
}
# Beside other programs, workers may be slow.
ONE_CORE = [
    "learner.num_threads=1",
    "env.step_timeout_s=600",
    "actors.timeout_s=600",
    "log.tensorboard=false",
]
FIGURES = {"whole": "return, whole training", "last": "return, last 100 episodes"}
NUM_RANDOM_EPISODES = 100


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


def published_runs(
    result: Mapping[str, Any],
    words: Mapping[str, Sequence[str]],
    variants: Mapping[str, Sequence[str]],
) -> list[Trained]:
    """Returns the runs of a result file with the same configuration and the same variant."""
    same = same_configurations(words, result.get("tasks", {}))
    runs = [Trained(**run) for run in result.get("runs", [])]
    return [
        run
        for run in runs
        if run.task in same and variants.get(run.variant) == result["variants"][run.variant]
    ]


def task_words(task: str, minatar_steps: int) -> list[str]:
    """Returns the words of the command line that set a task."""
    steps = [f"total_steps={minatar_steps}"] if task.startswith("MinAtar") else []
    return [*TASKS[task], *steps]


def train(folder: Path, task: str, words: Sequence[str], variant: str, seed: int) -> Trained:
    """Runs or resumes a training to its end, if it is not complete; returns its scores."""
    run_dir = folder / task.replace(" ", "_") / variant / f"seed_{seed}"
    if not _is_complete(run_dir):
        _run(run_dir, words, variant, seed)
    returns = [line["episode/return_mean"] for line in training_lines(run_dir)]
    last = json.loads((run_dir / "summary.json").read_text())["metric"]
    whole = statistics.fmean(value for value in returns if value is not None)
    print(f"  {task:<22} {variant:<9} seed {seed}: {whole:8.2f} {last:8.2f}", flush=True)
    return Trained(task, variant, seed, whole, last)


def _is_complete(run_dir: Path) -> bool:
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
    except FileNotFoundError:
        return False
    return bool(summary["env_steps"] >= read_config(run_dir)["total_steps"])


def _run(run_dir: Path, words: Sequence[str], variant: str, seed: int) -> None:
    own = [*words, *VARIANTS[variant], *ONE_CORE, f"seed={seed}"]
    own += [f"hydra.run.dir={run_dir}", "resume=auto"]
    command = [sys.executable, "-m", "htsrl_cli", "train", *own]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{run_dir}:\n{done.stderr[-2000:]}")


def random_return(words: Sequence[str]) -> float:
    """Returns the mean return of random actions on a task."""
    config = compose(words)
    return statistics.fmean(random_scores(config.env, NUM_RANDOM_EPISODES, seed=0))


def normalized(
    runs: Sequence[Trained], random: Mapping[str, float], figure: str
) -> dict[str, Array]:
    """Returns the normalized scores [K, S] of each variant; see `scripts.learning_statistics`.

    Args:
        random: mean return of random actions for each task.
        figure: a key of `FIGURES`.
    """
    raw = {
        variant: np.array(
            [
                [getattr(r, figure) for r in runs if (r.task, r.variant) == (task, variant)]
                for task in random
            ]
        )
        for variant in dict.fromkeys(run.variant for run in runs)
    }
    zero = np.array(list(random.values()))[:, None]
    one = raw[BASELINE].mean(axis=1, keepdims=True)
    return {variant: (scores - zero) / (one - zero) for variant, scores in raw.items()}


def summarize(runs: Sequence[Trained], random: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns a record for each figure and variant: interquartile mean, improvement on `sync`."""
    records = []
    for figure in FIGURES:
        scores = normalized(runs, random, figure)
        for variant, own in scores.items():
            mean = estimate(interquartile_mean, own)
            better = estimate(probability_of_improvement, own, scores[BASELINE])
            records.append(
                {"figure": figure, "variant": variant, "mean": mean, "improvement": better}
            )
    return records


def summary_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of `summarize`'s records."""
    rows = [
        (FIGURES[r["figure"]], r["variant"], _shown(r["mean"]), _shown(r["improvement"]))
        for r in records
    ]
    return table(("figure", "variant", "interquartile mean", f"better than {BASELINE}"), rows)


def _shown(numbers: Sequence[float]) -> str:
    value = Estimate(*numbers)
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


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
    return table(("task", "variant", *FIGURES.values(), "seeds"), rows)


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the interquartile means with their intervals, and writes the figure to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(FIGURES), figsize=(10, 3), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, FIGURES.items(), strict=True):
        own = [record for record in records if record["figure"] == name]
        for place, record in enumerate(own):
            value, low, high = record["mean"]
            axis.plot([low, high], [place, place], linewidth=6, alpha=0.4, color="C0")
            axis.plot(value, place, "o", color="C0")
        axis.set_yticks(range(len(own)), [record["variant"] for record in own])
        axis.axvline(1, color="gray", linestyle="--")
        axis.set_title(title)
        axis.set_xlabel(f"interquartile mean; 1 is {BASELINE}")
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains all variants, prints the tables, and writes the figures and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds per variant (default: 5)")
    parser.add_argument(
        "--minatar-steps",
        type=int,
        default=1_000_000,
        help="env steps of a run on MinAtar (default: 1,000,000); another folder for other steps",
    )
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs (default: 2)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "compare_learning")
    parser.add_argument("--output", type=Path, default=result_path("compare_learning"))
    parser.add_argument(
        "--keep-published",
        action="store_true",
        help="take runs from the output file, and train only those that it lacks",
    )
    args = parser.parse_args()
    exit_on_sigterm()
    if args.seeds < 2:
        parser.error("--seeds must be 2 or more")
    # The baseline is always needed. bf16 without its instructions would be emulated.
    variants = [name for name in VARIANTS if name in (BASELINE, *args.variants)]
    variants = [name for name in variants if name != "bf16" or has_bf16()]
    words = {task: task_words(task, args.minatar_steps) for task in args.tasks}
    random = {task: random_return(own) for task, own in words.items()}
    variant_words = {variant: [*VARIANTS[variant], *ONE_CORE] for variant in variants}
    earlier = read_result(args.output) if args.keep_published else {}
    kept = {
        (run.task, run.variant, run.seed): run
        for run in published_runs(earlier, words, variant_words)
    }

    def trained(job: tuple[str, str, int]) -> Trained:
        task, variant, seed = job
        return kept.get(job) or train(args.folder, task, words[task], variant, seed)

    jobs = [(t, v, s) for s in range(1, args.seeds + 1) for t in args.tasks for v in variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(trained, jobs))
    records = summarize(runs, random)
    print(means_table(runs))
    print(summary_table(records))
    report = {
        "tasks": words,
        "variants": variant_words,
        "random": random,
        "runs": [asdict(run) for run in runs],
        "summary": records,
    }
    write_result(args.output, report, earlier if kept else None)
    draw(records, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
