"""The HTS-RL paper's comparison at the scale of this machine: Tables 1 and 2 of arXiv 2012.09849.

    python -m scripts.paper_tables --atari pong breakout --env-steps 200_000 --seeds 3
    python -m scripts.paper_tables --football academy_empty_goal_close --seeds 3

Every task is trained with `sync` (A2C and PPO), `hts` (A2C and PPO) and `async` (IMPALA), one run
at a time. Beside the training, policies play evaluation games. Three figures are reported, as in
the paper:

    final metric         mean score of the last 100 evaluation games (10 of each of 10 policies)
    final time metric    the final metric at the time when the first run of the task was complete
    required time        minutes until the final metric first reached a target

Start the same command again to go on after an interruption: complete runs are not repeated, and
others are resumed. A resumed asynchronous run is not exact.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from htsrl_cli.machine import has_bf16
from htsrl_cli.tracking.bootstrap import confidence_interval
from htsrl_cli.tracking.lines import read_lines
from htsrl_cli.tracking.metric_names import EVAL_RETURN, FINAL_METRIC
from scripts.interruption import exit_on_sigterm
from scripts.provenance import ROOT, result_path, write_result
from scripts.reference.markdown import table

# The words of each variant, by the kind of task.
VARIANTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "atari": {
        "sync A2C": ["experiment=atari_a2c", "runner=sync"],
        "hts A2C": ["experiment=atari_a2c"],
        "sync PPO": ["experiment=atari_ppo", "runner=sync"],
        "hts PPO": ["experiment=atari_ppo"],
        "async IMPALA": ["experiment=atari_impala"],
    },
    "football": {
        "sync PPO": ["experiment=football_ppo", "runner=sync"],
        "hts PPO": ["experiment=football_ppo"],
        "async IMPALA": ["experiment=football_impala"],
    },
}
TARGETS = {"atari": (), "football": (0.4, 0.8)}
NUM_POLICIES = 50


@dataclass(frozen=True)
class Evaluated:
    """The evaluations of a run, in order; `scores` holds the final metric after each of them."""

    task: str
    variant: str
    seed: int
    env_steps: list[int]
    seconds: list[float]
    scores: list[float]

    def score_at(self, seconds: float) -> float:
        """Returns the final metric at a time; that of the first evaluation before it."""
        return self.scores[max(0, int(np.searchsorted(self.seconds, seconds, "right")) - 1)]

    def seconds_to(self, target: float) -> float | None:
        """Returns the time at which the final metric first reached the target; None if never."""
        return next(
            (s for s, score in zip(self.seconds, self.scores, strict=True) if score >= target), None
        )


def train(
    folder: Path, kind: str, name: str, variant: str, seed: int, words: Sequence[str]
) -> Evaluated:
    """Runs or resumes a training to its end; prints and returns its evaluations."""
    run_dir = folder / name / variant.replace(" ", "_") / f"seed_{seed}"
    own = [*VARIANTS[kind][variant], f"env={kind}/{name}", *words, f"seed={seed}"]
    own += [f"hydra.run.dir={run_dir}", "resume=auto"]
    command = [sys.executable, "-m", "htsrl_cli", "train", *own]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, {variant}, seed {seed}:\n{done.stderr[-2000:]}")
    lines = [line for line in read_lines(run_dir) if EVAL_RETURN in line]
    found = Evaluated(
        *(name, variant, seed),
        env_steps=[line["env_steps"] for line in lines],
        seconds=[line["time/seconds"] for line in lines],
        scores=[line[FINAL_METRIC] for line in lines],
    )
    minutes = found.seconds[-1] / 60
    print(f"  {name} {variant:<13} seed {seed}: {found.scores[-1]:.2f}, {minutes:.1f} minutes")
    sys.stdout.flush()
    return found


def score_table(runs: Sequence[Evaluated]) -> str:
    """Returns a Markdown table like the paper's Table 1, with 95 % confidence intervals."""
    variants = list(dict.fromkeys(run.variant for run in runs))
    rows = []
    for task in dict.fromkeys(run.task for run in runs):
        own = [run for run in runs if run.task == task]
        limit = min(run.seconds[-1] for run in own)
        for title, time in (
            ("final metric", math.inf),
            (f"after {limit / 60:.0f} minutes", limit),
        ):
            cells = [_mean([r.score_at(time) for r in own if r.variant == v]) for v in variants]
            rows.append((task, title, *cells))
    return table(("task", "figure", *variants), rows)


def _mean(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):,.2f}"
    if len(values) < 2:
        return mean
    low, high = confidence_interval(np.array(values))
    return f"{mean} ({low:,.2f} to {high:,.2f})"


def time_table(runs: Sequence[Evaluated], targets: Sequence[float]) -> str:
    """Returns a Markdown table like the paper's Table 2: minutes to each target, for each seed."""
    variants = list(dict.fromkeys(run.variant for run in runs))
    rows = []
    for task in dict.fromkeys(run.task for run in runs):
        for target in targets:
            cells = [
                ", ".join(
                    _minutes(run.seconds_to(target))
                    for run in runs
                    if (run.task, run.variant) == (task, variant)
                )
                for variant in variants
            ]
            rows.append((task, f"{target:g}", *cells))
    return table(("task", "target", *variants), rows)


def _minutes(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds / 60:.1f}"


def draw(runs: Sequence[Evaluated], path: Path) -> None:
    """Draws the final metric against env steps and minutes, a row for each task; writes `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(run.task for run in runs))
    variants = list(dict.fromkeys(run.variant for run in runs))
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(10, 3.5 * len(tasks)), squeeze=False, layout="constrained"
    )
    for row, task in zip(axes, tasks, strict=True):
        for run in (run for run in runs if run.task == task):
            color = f"C{variants.index(run.variant)}"
            label = run.variant if run.seed == 1 else None
            row[0].plot([n / 1e6 for n in run.env_steps], run.scores, color, label=label)
            row[1].plot([s / 60 for s in run.seconds], run.scores, color)
        for axis, unit in zip(row, ("million env steps", "minutes"), strict=True):
            axis.set_xlabel(unit)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{task}: final metric")
        row[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains all variants, prints the tables, and writes the figures and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atari", nargs="+", default=[], metavar="GAME")
    parser.add_argument("--football", nargs="+", default=[], metavar="SCENARIO")
    parser.add_argument("--env-steps", type=int, default=200_000, help="of a run (200,000)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per variant (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "paper_tables")
    parser.add_argument("--output", type=Path, default=result_path("paper_tables"))
    args = parser.parse_args()
    exit_on_sigterm()
    tasks = [("atari", name) for name in args.atari]
    tasks += [("football", name) for name in args.football]
    if not tasks:
        parser.error("give --atari GAME or --football SCENARIO")
    precision = "bf16" if has_bf16() else "fp32"
    shared = [f"total_steps={args.env_steps}", f"eval.interval={args.env_steps // NUM_POLICIES}"]
    shared += [f"{role}.precision={precision}" for role in ("actors", "learner")]
    shared += [f"{role}.device={args.device}" for role in ("actors", "learner")]
    shared.append("log.tensorboard=false")
    runs = [
        train(args.folder, kind, name, variant, seed, [*shared, *_targets(kind)])
        for seed in range(1, args.seeds + 1)
        for kind, name in tasks
        for variant in VARIANTS[kind]
    ]
    for kind, names in (("atari", args.atari), ("football", args.football)):
        own = [run for run in runs if run.task in names]
        if own:
            print(score_table(own), time_table(own, TARGETS[kind]), sep="\n")
    report: dict[str, Any] = {
        "words": shared,
        "variants": json.loads(json.dumps(VARIANTS)),
        "targets": TARGETS,
        "runs": [asdict(run) for run in runs],
    }
    write_result(args.output, report)
    draw(runs, args.output.with_suffix(".png"))


def _targets(kind: str) -> list[str]:
    targets = ",".join(f"{target:g}" for target in TARGETS[kind])
    return [f"eval.targets=[{targets}]"] if targets else []


if __name__ == "__main__":
    main()
