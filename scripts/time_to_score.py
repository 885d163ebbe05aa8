"""Env steps and minutes until Atari games reach a score: `hts` against `sync`, over seeds.

    python -m scripts.time_to_score --games pong --seeds 3
    python -m scripts.time_to_score --games breakout qbert --device cuda

Runs `htsrl train experiment=atari_ppo_hts`, one run at a time, because the minutes count. A run
ends when its score reaches the game's target, or after all its env steps; games without a target
always take all env steps. The score is the mean raw score of the last 100 games. Start the same
command again to go on after an interruption: complete runs are not repeated, and others are
resumed.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from htsrl_cli.machine import has_bf16
from scripts.learning_curve import Point, evenly_spaced, read_points
from scripts.provenance import ROOT, result_path, write_result
from scripts.reference.markdown import table

_WINDOW = 100
_MOST_POINTS = 100
_POLL_S = 2.0
RUNNERS = ("hts", "sync")


@dataclass(frozen=True)
class Game:
    """A game of the comparison.

    Attributes:
        env_steps: env steps of a run.
        target: score at which a run ends; None if it takes all its env steps.
        published: final scores that others have published, by name.
    """

    env_steps: int
    target: float | None = None
    published: Mapping[str, float] = field(default_factory=dict)


GAMES = {
    "pong": Game(3_000_000, target=18.0),
    "breakout": Game(10_000_000, published={"RL Zoo": 398, "CleanRL": 415}),
    "qbert": Game(10_000_000, published={"RL Zoo": 15_627}),
    "seaquest": Game(10_000_000, published={"RL Zoo": 1_784}),
    "ms_pacman": Game(10_000_000, published={"RL Zoo": 1_754}),
    "frostbite": Game(10_000_000),
}


@dataclass(frozen=True)
class Run:
    """What a run reached.

    Attributes:
        env_steps, seconds: env steps and time of training when the score reached the target, or at
            the end of the run.
        score: the score at that moment.
        reached: True if the run reached the target.
        points: the learning curve, as `scripts.learning_curve.Point`.
    """

    game: str
    runner: str
    seed: int
    env_steps: int
    seconds: float
    score: float
    reached: bool
    points: list[dict[str, float]]


def train(run_dir: Path, words: Sequence[str], target: float | None) -> None:
    """Runs or resumes a training, and stops it when it has reached the target."""
    if reached_at(read_points(run_dir), target):
        return
    command = [sys.executable, "-m", "htsrl_cli", "train", *words]
    command += [f"hydra.run.dir={run_dir}", "resume=auto"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None:
            time.sleep(_POLL_S)
            if reached_at(read_points(run_dir), target):
                process.terminate()
                break
    finally:
        # An interrupt of this script, too, leaves a checkpoint.
        process.terminate()
        _, errors = process.communicate()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        raise SystemExit(f"{' '.join(words)}:\n{errors.decode()[-2000:]}")


def reached_at(points: Sequence[Point], target: float | None) -> Point | None:
    """Returns the first point whose score, over 100 games, is at least the target."""
    if target is None:
        return None
    return next((p for p in points if p.games >= _WINDOW and p.score >= target), None)


def measure(folder: Path, game: str, runner: str, seed: int, words: Sequence[str]) -> Run:
    """Trains, prints and returns what the run reached."""
    run_dir = folder / game / runner / f"seed_{seed}"
    target = GAMES[game].target
    train(run_dir, words, target)
    points = read_points(run_dir)
    found = reached_at(points, target)
    end = found or points[-1]
    curve = [p for p in points if p.env_steps <= end.env_steps]
    run = Run(
        *(game, runner, seed),
        env_steps=end.env_steps,
        seconds=end.seconds,
        score=end.score,
        reached=found is not None,
        points=[asdict(p) for p in evenly_spaced(curve, _MOST_POINTS)],
    )
    print(
        f"  {game} {runner:<4} seed {seed}: {run.score:.1f} after {run.env_steps:,} env steps, "
        f"{run.seconds / 60:.0f} minutes",
        flush=True,
    )
    return run


def runs_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table with a row for each run, and the published scores of its game."""
    rows = []
    for run in runs:
        game = GAMES[run["game"]]
        published = ", ".join(f"{name} {score:,}" for name, score in game.published.items())
        goal = f"{game.target:g}" if game.target is not None else published
        rows.append(
            (
                run["game"],
                run["runner"],
                str(run["seed"]),
                f"{run['score']:,.1f}",
                f"{run['env_steps']:,}",
                f"{run['seconds'] / 60:.0f}",
                goal,
            )
        )
    return table(
        ("game", "runner", "seed", "score", "env steps", "minutes", "target or published"), rows
    )


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws the curves against env steps and minutes, a row for each game; writes `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    games = list(dict.fromkeys(run.game for run in runs))
    figure, axes = plt.subplots(
        len(games), 2, figsize=(10, 3.5 * len(games)), squeeze=False, layout="constrained"
    )
    for row, game in zip(axes, games, strict=True):
        for run in (run for run in runs if run.game == game):
            color = f"C{RUNNERS.index(run.runner)}"
            label = run.runner if run.seed == 1 else None
            scores = [p["score"] for p in run.points]
            row[0].plot([p["env_steps"] / 1e6 for p in run.points], scores, color, label=label)
            row[1].plot([p["seconds"] / 60 for p in run.points], scores, color)
        for axis, unit in zip(row, ("million env steps", "minutes"), strict=True):
            axis.set_xlabel(unit)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{game}: score")
        row[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains all games, prints the table, and writes the figures and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", nargs="+", choices=GAMES, default=["pong"])
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds per game (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="bf16" if has_bf16() else "fp32",
        help="default: bf16 if this processor has its instructions",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "time_to_score")
    parser.add_argument("--output", type=Path, default=result_path("time_to_score"))
    args = parser.parse_args()
    shared = ["experiment=atari_ppo_hts", "log.tensorboard=false", "log.rollouts_sha256=false"]
    shared += [f"actors.device={args.device}", f"learner.device={args.device}"]
    shared += [f"actors.precision={args.precision}", f"learner.precision={args.precision}"]
    runs = []
    for seed in range(1, args.seeds + 1):
        for game in args.games:
            for runner in args.runners:
                words = [*shared, f"env=atari/{game}", f"runner={runner}", f"seed={seed}"]
                words.append(f"total_steps={GAMES[game].env_steps}")
                runs.append(measure(args.folder, game, runner, seed, words))
    records = [asdict(run) for run in runs]
    print(runs_table(records))
    write_result(args.output, {"words": shared, "runs": records})
    draw(runs, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
