"""Env steps and minutes until a task is learned, for each preset, over seeds; `hts` against `sync`.

    python -m scripts.time_to_score --tasks pong --seeds 3
    python -m scripts.time_to_score --tasks breakout qbert --device cuda

Runs `htsrl train` for each task, one run at a time, because the minutes count. With `--jobs`, some
run at once, and their minutes are left out. A run ends when its score reaches the task's
target, or after all its env steps; tasks without a target always take all env steps. The score is
the mean raw score of the last 100 games. Start the same command again to go on after an
interruption: complete runs are not repeated, and others are resumed.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from htsrl_cli.machine import has_bf16, num_cores, processor
from scripts.interruption import exit_on_sigterm
from scripts.learning_curve import Point, evenly_spaced, read_points
from scripts.measured_runs import same_configurations
from scripts.provenance import ROOT, read_result, result_path, write_result
from scripts.reference.markdown import table

_WINDOW = 100
_MOST_POINTS = 100
_POLL_S = 2.0
RUNNERS = ("hts", "sync")
# The task, the runner and the seed of a run.
Job = tuple[str, str, int]


@dataclass(frozen=True)
class Task:
    """A task of the comparison.

    Attributes:
        words: the words of the command line that set the task.
        target: score at which a run ends; None if it takes all its env steps.
        published: final scores that others have published, by name.
    """

    words: Sequence[str]
    target: float | None = None
    published: Mapping[str, float] = field(default_factory=dict)


def _atari(game: str, env_steps: int) -> list[str]:
    return ["experiment=atari_ppo_hts", f"env=atari/{game}", f"total_steps={env_steps}"]


TASKS = {
    "pong": Task(_atari("pong", 3_000_000), target=18.0),
    "breakout": Task(_atari("breakout", 10_000_000), published={"RL Zoo": 398, "CleanRL": 415}),
    "qbert": Task(_atari("qbert", 10_000_000), published={"RL Zoo": 15_627}),
    "seaquest": Task(_atari("seaquest", 10_000_000), published={"RL Zoo": 1_784}),
    "ms_pacman": Task(_atari("ms_pacman", 10_000_000), published={"RL Zoo": 1_754}),
    "frostbite": Task(_atari("frostbite", 10_000_000)),
    "atari_ppo": Task(["experiment=atari_ppo", "total_steps=3_000_000"], target=18.0),
    "atari_a2c": Task(["experiment=atari_a2c", "total_steps=5_000_000"], target=18.0),
    "cartpole_ppo": Task(["experiment=cartpole_ppo"], target=475.0),
    "cartpole_a2c": Task(["experiment=cartpole_a2c"], target=475.0),
    "football_ppo": Task(["experiment=football_ppo", "total_steps=1_000_000"], target=0.8),
    "football_players_ppo": Task(["experiment=football_players_ppo"], target=0.8),
}


@dataclass(frozen=True)
class Run:
    """The score that a run reached.

    Attributes:
        env_steps: env steps when the score reached the target, or at the end of the run.
        seconds: time of training until then; None if other runs ran beside this one.
        score: the score at that moment.
        reached: True if the run reached the target.
        points: the learning curve, as `scripts.learning_curve.Point`.
    """

    task: str
    runner: str
    seed: int
    env_steps: int
    seconds: float | None
    score: float
    reached: bool
    points: list[dict[str, float]]


def train(run_dir: Path, words: Sequence[str], target: float | None, stop: Event) -> None:
    """Runs or resumes a training, and stops it when it has reached the target.

    Args:
        stop: stops the training early; the exception `SystemExit` follows.
    """
    if reached_at(read_points(run_dir), target):
        return
    command = [sys.executable, "-m", "htsrl_cli", "train", *words]
    command += [f"hydra.run.dir={run_dir}", "resume=auto"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None:
            if stop.wait(_POLL_S):
                raise SystemExit("interrupted")
            if reached_at(read_points(run_dir), target):
                break
    finally:
        # The run saves a checkpoint, also if this script is interrupted. A second signal would end
        # it without one.
        process.terminate()
        _, errors = process.communicate()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        raise SystemExit(f"{' '.join(words)}:\n{errors.decode()[-2000:]}")


def reached_at(points: Sequence[Point], target: float | None) -> Point | None:
    """Returns the first point whose score, over 100 games, is at least the target."""
    if target is None:
        return None
    return next((p for p in points if p.games >= _WINDOW and p.score >= target), None)


def measure(
    folder: Path, words: Sequence[str], job: Job, stop: Event, num_parallel: int = 1
) -> Run:
    """Trains, prints and returns what the run reached.

    Args:
        words: words of the command line, without those of the runner and the seed.
        job: the task, the runner and the seed.
        stop: see `train`.
        num_parallel: number of runs that run at once; each gets its share of the learner threads.
    """
    task, runner, seed = job
    run_dir = folder / task / runner / f"seed_{seed}"
    target = TASKS[task].target
    own = [*words, f"runner={runner}", f"seed={seed}"]
    if num_parallel > 1:
        own.append(f"learner.num_threads={max(1, num_cores() // num_parallel)}")
    train(run_dir, own, target, stop)
    points = read_points(run_dir)
    found = reached_at(points, target)
    end = found or points[-1]
    curve = [p for p in points if p.env_steps <= end.env_steps]
    run = Run(
        *job,
        env_steps=end.env_steps,
        seconds=end.seconds if num_parallel == 1 else None,
        score=end.score,
        reached=found is not None,
        points=[asdict(p) for p in evenly_spaced(curve, _MOST_POINTS)],
    )
    print(
        f"  {task} {runner:<4} seed {seed}: {run.score:.1f} after {run.env_steps:,} env steps, "
        f"{end.seconds / 60:.0f} minutes",
        flush=True,
    )
    return run


def published_runs(result: Mapping[str, Any], tasks: Mapping[str, Sequence[str]]) -> list[Run]:
    """Returns the runs of a result file with the same configuration, on a processor like this one.

    Args:
        tasks: the words of each task today.
    """
    measured = [*result.get("measured_earlier", []), *([result["measured"]] if result else [])]
    if any(origin["processor"] != processor() for origin in measured):
        return []
    same = same_configurations(tasks, result.get("tasks", {}))
    return [run for run in (Run(**record) for record in result.get("runs", [])) if run.task in same]


def runs_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table: a row for each run, with its target or published scores."""
    rows = []
    for run in runs:
        task = TASKS[run["task"]]
        published = ", ".join(f"{name} {score:,}" for name, score in task.published.items())
        goal = f"{task.target:g}" if task.target is not None else published
        rows.append(
            (
                run["task"],
                run["runner"],
                str(run["seed"]),
                f"{run['score']:,.1f}",
                f"{run['env_steps']:,}",
                "-" if run["seconds"] is None else f"{run['seconds'] / 60:.0f}",
                goal,
            )
        )
    return table(
        ("task", "runner", "seed", "score", "env steps", "minutes", "target or published"), rows
    )


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws the curves against env steps and minutes, a row for each task; writes `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(run.task for run in runs))
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(10, 3.5 * len(tasks)), squeeze=False, layout="constrained"
    )
    for row, task in zip(axes, tasks, strict=True):
        for run in (run for run in runs if run.task == task):
            color = f"C{RUNNERS.index(run.runner)}"
            label = run.runner if run.seed == 1 else None
            scores = [p["score"] for p in run.points]
            row[0].plot([p["env_steps"] / 1e6 for p in run.points], scores, color, label=label)
            if run.seconds is not None:
                row[1].plot([p["seconds"] / 60 for p in run.points], scores, color)
        for axis, unit in zip(row, ("million env steps", "minutes"), strict=True):
            axis.set_xlabel(unit)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{task}: score")
        row[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains all tasks, prints the table, and writes the figures and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["pong"])
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds per task (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="bf16" if has_bf16() else "fp32",
        help="default: bf16 if this processor has its instructions",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "time_to_score")
    parser.add_argument("--output", type=Path, default=result_path("time_to_score"))
    parser.add_argument(
        "--keep-published",
        action="store_true",
        help="add to the runs of the output file, if a processor like this one made them",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="parallel runs, which have no minutes (default: 1)"
    )
    args = parser.parse_args()
    exit_on_sigterm()
    shared = ["log.tensorboard=false"]
    shared += [f"actors.device={args.device}", f"learner.device={args.device}"]
    shared += [f"actors.precision={args.precision}", f"learner.precision={args.precision}"]
    words = {task: [*TASKS[task].words, *shared] for task in TASKS}
    earlier = read_result(args.output) if args.keep_published else {}
    kept = {(run.task, run.runner, run.seed): run for run in published_runs(earlier, words)}
    seeds = range(1, args.seeds + 1)
    asked = [(task, runner, n) for n in seeds for task in args.tasks for runner in args.runners]
    jobs = [job for job in asked if job not in kept]
    stop = Event()

    def measured(job: Job) -> Run:
        return measure(args.folder, words[job[0]], job, stop, args.jobs)

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            runs = [*kept.values(), *pool.map(measured, jobs)]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    runs.sort(key=lambda run: (list(TASKS).index(run.task), run.runner, run.seed))
    records = [asdict(run) for run in runs]
    print(runs_table(records))
    tasks = {run.task: words[run.task] for run in runs}
    write_result(args.output, {"tasks": tasks, "runs": records}, earlier if kept else None)
    draw(runs, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
