"""Learning curve of a run as a figure, a JSON file and a Markdown table.

    python -m scripts.learning_curve RUN_DIR --random-episodes 30

The score is the mean raw return of the last 100 games, or of all games if there are fewer. The
optional random policy plays the run's own environment with uniformly random actions.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.load import load_train_config
from htsrl_cli.envs.base import Array, Env
from htsrl_cli.envs.probe import random_action
from htsrl_cli.envs.registry import make_env
from htsrl_cli.seeding import Purpose, generator, reset_seed
from htsrl_cli.tracking.lines import training_lines
from htsrl_cli.tracking.metric_names import RECENT_RETURN
from scripts.provenance import write_result
from scripts.reference.markdown import table


@dataclass(frozen=True)
class Point:
    """Progress of a run at a line of its metrics.

    Attributes:
        env_steps: env steps so far.
        seconds: seconds of training so far.
        games: number of games that have ended.
        score: mean raw return of the last 100 games.
    """

    env_steps: int
    seconds: float
    games: int
    score: float


def read_points(run_dir: Path) -> list[Point]:
    """Returns a point for each line of training metrics from the end of the first game on."""
    return [
        Point(line["env_steps"], line["time/seconds"], line["episode/total"], line[RECENT_RETURN])
        for line in training_lines(run_dir)
        if line[RECENT_RETURN] is not None
    ]


def evenly_spaced(points: Sequence[Point], most: int) -> list[Point]:
    """Returns at most `most` of the points, at about equal distances in the sequence.

    The first and the last point are included.
    """
    chosen = np.unique(np.linspace(0, len(points) - 1, most).round().astype(int))
    return [points[i] for i in chosen]


def curve_table(points: Sequence[Point]) -> str:
    """Returns a Markdown table with a row for each point."""
    rows = []
    for point in points:
        minutes, seconds = divmod(round(point.seconds), 60)
        time, games = f"{minutes}:{seconds:02d}", f"{point.games:,}"
        rows.append((f"{point.env_steps:,}", time, games, f"{point.score:.2f}"))
    return table(("env steps", "min:s", "games", "mean score of the last 100 games"), rows)


def random_scores(config: EnvConfig, num_games: int, seed: int) -> list[float]:
    """Plays games with uniformly random actions; returns their raw scores."""
    with closing(make_env(config, 0)) as env:
        scores: list[float] = []
        episode = 0
        env.reset(seed=reset_seed(seed, 0, episode, Purpose.EVALUATION_RESETS))
        rng = generator(seed, Purpose.EVALUATION_ACTIONS)
        while len(scores) < num_games:
            score, ended = _step(env, _random_action(env, rng))
            scores += [] if score is None else [score]
            if ended:
                episode += 1
                env.reset(seed=reset_seed(seed, 0, episode, Purpose.EVALUATION_RESETS))
        return scores


def _step(env: Env, action: Array) -> tuple[float | None, bool]:
    """Takes an env step.

    Returns:
        The score if a game has ended, else None; and True if the environment needs a reset.
    """
    _, _, terminated, truncated, info = env.step(action)
    game = info.get("episode")
    return (float(game["r"]) if game else None), terminated or truncated


def _random_action(env: Env, rng: np.random.Generator) -> Array:
    """Returns a random action, of shape [D] for one player, [P, D] for P players.

    Unlike those of `random_action`, the numbers of a `Box` are uniform within its bounds.
    """
    spec, actions = env.env_spec, env.env_spec.actions
    if actions.kind != "gaussian":
        return random_action(env, rng)
    players = (spec.num_players,) if spec.num_players > 1 else ()
    shape = (*players, actions.num_dims)
    return rng.uniform(actions.low, actions.high, shape).astype(actions.dtype)


def draw(points: Sequence[Point], random_score: float | None, title: str, path: Path) -> None:
    """Draws the score against env steps and against time, and writes the figure to `path`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    scores = [point.score for point in points]
    horizontal = {
        "env steps": [float(point.env_steps) for point in points],
        "minutes": [point.seconds / 60 for point in points],
    }
    for axis, (label, values) in zip(axes, horizontal.items(), strict=True):
        axis.plot(values, scores, label="trained")
        if random_score is not None:
            axis.axhline(random_score, color="gray", linestyle="--", label="random policy")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean raw score of the last 100 games")
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Reads a run, prints the table, and writes the figure and the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, help="folder of a run of `htsrl train`")
    parser.add_argument("--rows", type=int, default=12, help="maximum number of rows (default: 12)")
    parser.add_argument(
        "--random-episodes", type=int, default=0, help="games of a random policy (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random games (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        help="PNG file; a JSON file is written beside it (default: RUN_DIR/learning_curve.png)",
    )
    args = parser.parse_args()
    points = read_points(args.run_dir)
    if not points:
        raise SystemExit(f"{args.run_dir}: no game has ended yet, or metrics.jsonl is missing")
    stored = load_checkpoint(find_checkpoint(args.run_dir)).meta["config"]
    config = load_train_config(stored)
    scores = random_scores(config.env, args.random_episodes, args.seed)
    mean = statistics.fmean(scores) if scores else None
    print(curve_table(evenly_spaced(points, args.rows)))
    if mean is not None:
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        print(f"\nRandom policy: {mean:.2f} (standard error {error:.2f}, {len(scores)} games)")
    output = args.output or args.run_dir / "learning_curve.png"
    report = {"config": stored, "points": [asdict(p) for p in points], "random_scores": scores}
    write_result(output.with_suffix(".json"), report)
    draw(points, mean, args.run_dir.name, output)
    print(f"{output} written")


if __name__ == "__main__":
    main()
