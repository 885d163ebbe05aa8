"""The HTS-RL paper's comparison at the scale of this machine: Tables 1 and 2 of arXiv 2012.09849.

    python -m scripts.paper_tables --tasks atari/pong atari/breakout --env-steps 200_000
    python -m scripts.paper_tables --tasks football/academy_empty_goal_close --seeds 3

Every task is trained with `sync` (A2C and PPO), `hts` (A2C and PPO) and `async` (IMPALA), football
without A2C, one run at a time. Beside the training, policies play evaluation games. Three figures
are reported, as in the paper:

    final metric         mean score of the last 100 evaluation games (10 of each of 10 policies)
    final time metric    the final metric at the time when the first run of the task was complete
    required time        minutes until the final metric first reached a target

Start the same command again to go on after an interruption: complete runs are not repeated, and
others are resumed. A resumed asynchronous run is not exact.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from htsrl_cli.machine import has_bf16, processor
from htsrl_cli.tracking.bootstrap import confidence_interval
from htsrl_cli.tracking.lines import read_lines
from htsrl_cli.tracking.metric_names import EVAL_RETURN, FINAL_METRIC
from scripts.interruption import exit_on_sigterm
from scripts.measured_runs import same_configurations
from scripts.provenance import ROOT, read_result, result_path, write_result
from scripts.reference.markdown import table

# The words of each variant, by the kind of environment.
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
TARGETS: Mapping[str, Sequence[float]] = {"atari": (), "football": (0.4, 0.8)}
NUM_POLICIES = 50
# The task (an option of the group `env`), the variant and the seed of a run.
Job = tuple[str, str, int]


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


def kind_of(task: str) -> str:
    """Returns the kind of environment of a task: its folder of options."""
    return task.partition("/")[0]


def words(task: str, variant: str, env_steps: int, device: str) -> list[str]:
    """Returns the words of the command line that set a run, without its seed."""
    precision = "bf16" if has_bf16() else "fp32"
    targets = ",".join(f"{target:g}" for target in TARGETS[kind_of(task)])
    return [
        *VARIANTS[kind_of(task)][variant],
        *(f"env={task}", f"total_steps={env_steps}", f"eval.interval={env_steps // NUM_POLICIES}"),
        *([f"eval.targets=[{targets}]"] if targets else []),
        *(f"{role}.precision={precision}" for role in ("actors", "learner")),
        *(f"{role}.device={device}" for role in ("actors", "learner")),
        "log.tensorboard=false",
    ]


def train(folder: Path, job: Job, own: Sequence[str]) -> Evaluated:
    """Runs or resumes a training to its end; prints and returns its evaluations.

    Args:
        own: the words of the command line, without those of the seed and the folder.
    """
    task, variant, seed = job
    run_dir = folder / task / variant.replace(" ", "_") / f"seed_{seed}"
    command = [sys.executable, "-m", "htsrl_cli", "train", *own, f"seed={seed}"]
    command += [f"hydra.run.dir={run_dir}", "resume=auto"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{task}, {variant}, seed {seed}:\n{done.stderr[-2000:]}")
    lines = [line for line in read_lines(run_dir) if EVAL_RETURN in line]
    found = Evaluated(
        *job,
        env_steps=[line["env_steps"] for line in lines],
        seconds=[line["time/seconds"] for line in lines],
        scores=[line[FINAL_METRIC] for line in lines],
    )
    minutes = found.seconds[-1] / 60
    print(f"  {task} {variant:<13} seed {seed}: {found.scores[-1]:.2f}, {minutes:.1f} minutes")
    sys.stdout.flush()
    return found


def published_runs(
    result: Mapping[str, Any], configurations: Mapping[str, Sequence[str]]
) -> list[Evaluated]:
    """Returns the runs of a result file with the same configuration, on a processor like this one.

    Args:
        configurations: today's words of each combination of task and variant, by `label`.
    """
    measured = [*result.get("measured_earlier", []), *([result["measured"]] if result else [])]
    if any(origin["processor"] != processor() for origin in measured):
        return []
    same = same_configurations(configurations, result.get("configurations", {}))
    runs = [Evaluated(**run) for run in result.get("runs", [])]
    return [run for run in runs if label(run.task, run.variant) in same]


def label(task: str, variant: str) -> str:
    """Returns the name of a combination of task and variant in result files."""
    return f"{task} {variant}"


def tables(runs: Sequence[Evaluated]) -> str:
    """Returns the tables of all tasks: for each kind of environment, scores, then minutes."""
    found = []
    for kind in dict.fromkeys(kind_of(run.task) for run in runs):
        own = [run for run in runs if kind_of(run.task) == kind]
        found.append(score_table(own))
        if TARGETS[kind]:
            found.append(time_table(own, TARGETS[kind]))
    return "\n\n".join(found)


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
            shown = run.variant if run.seed == 1 else None
            row[0].plot([n / 1e6 for n in run.env_steps], run.scores, color, label=shown)
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
    parser.add_argument("--tasks", nargs="+", required=True, metavar="KIND/NAME")
    parser.add_argument("--env-steps", type=int, default=200_000, help="of a run (200,000)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per variant (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "paper_tables")
    parser.add_argument("--output", type=Path, default=result_path("paper_tables"))
    parser.add_argument(
        "--keep-published",
        action="store_true",
        help="add to the runs of the output file, if a processor like this one made them",
    )
    args = parser.parse_args()
    if unknown := [task for task in args.tasks if kind_of(task) not in VARIANTS]:
        parser.error(f"{unknown[0]}: must begin with {' or '.join(f'{k}/' for k in VARIANTS)}")
    exit_on_sigterm()
    earlier = read_result(args.output) if args.keep_published else {}
    pairs = [(task, variant) for task in args.tasks for variant in VARIANTS[kind_of(task)]]
    asked = {label(*pair): words(*pair, args.env_steps, args.device) for pair in pairs}
    # A published task that was not asked for stays as it is.
    configurations = {**earlier.get("configurations", {}), **asked}
    runs = published_runs(earlier, configurations)
    kept = {(run.task, run.variant, run.seed) for run in runs}
    jobs = [(*pair, seed) for seed in range(1, args.seeds + 1) for pair in pairs]
    for job in jobs:
        if job not in kept:
            runs.append(train(args.folder, job, asked[label(*job[:2])]))
    order = {variant: n for names in VARIANTS.values() for n, variant in enumerate(names)}
    runs.sort(key=lambda run: (run.task, order[run.variant], run.seed))
    print(tables(runs))
    report: dict[str, Any] = {
        "configurations": {
            label(r.task, r.variant): configurations[label(r.task, r.variant)] for r in runs
        },
        "runs": [asdict(run) for run in runs],
    }
    write_result(args.output, report, earlier if kept else None)
    draw(runs, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
