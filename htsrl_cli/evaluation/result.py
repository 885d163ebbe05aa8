"""The scores of an evaluation: their statistics, the table that shows them, and `eval.json`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from htsrl_cli.durable import write_durably
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.bootstrap import confidence_interval

logger = logging.getLogger(__name__)

RESULT_FILE = "eval.json"
VIDEO_FOLDER = "videos"


# Kinds of actions, in the order of the columns; the value is True for the most likely actions.
KINDS = {"greedy": True, "sampled": False}


@dataclass(frozen=True)
class Scores:
    """The scores of the games that were played with one kind of actions.

    Attributes:
        returns: raw score of each game, in order of the games' numbers.
        training_returns: for each game, the sum of the training rewards (which may be clipped),
            averaged over the players.
        lengths: number of env steps of each game.
        mean: mean of `returns`.
        std: sample standard deviation of `returns` (ddof 1); None for a single game.
        interval: ends of the 95 % bootstrap confidence interval of the mean; None for a single
            game.
    """

    returns: tuple[float, ...]
    training_returns: tuple[float, ...]
    lengths: tuple[int, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation, which `eval.json` holds.

    Attributes:
        checkpoint: path of the evaluated checkpoint.
        env_steps: env steps for which the policy was trained.
        seed: seed of the resets and of the sampled actions.
        scores: the scores by kind of actions: `greedy` (the most likely actions), `sampled`, or
            both.
    """

    checkpoint: str
    env_steps: int
    seed: int
    scores: dict[str, Scores]


def scores(episodes: Sequence[Episode], seed: int) -> Scores:
    """Returns the scores of games.

    Args:
        episodes: results of the games, in order of the games' numbers.
        seed: seed of the bootstrap.
    """
    returns, training_returns, lengths = zip(*episodes, strict=True)
    std, interval = spread(returns, seed)
    return Scores(returns, training_returns, lengths, float(np.mean(returns)), std, interval)


def spread(returns: Sequence[float], seed: int) -> tuple[float | None, tuple[float, float] | None]:
    """Returns the spread of scores: their standard deviation and a confidence interval.

    Args:
        returns: the scores.
        seed: seed of the bootstrap.

    Returns:
        The sample standard deviation (ddof 1), and the ends of the 95 % percentile bootstrap
        confidence interval of the mean. Both are None for fewer than two scores.
    """
    if len(returns) < 2:
        return None, None
    low, high = confidence_interval(np.asarray(returns), seed)
    return float(np.std(returns, ddof=1)), (float(low), float(high))


def table(result: EvalResult) -> Table:
    """Returns the table that `htsrl eval` prints, with one column for each kind of actions."""
    columns = {f"{kind} actions": _column(found) for kind, found in result.scores.items()}
    title = f"{result.checkpoint} after {result.env_steps:,} env steps (seed {result.seed})"
    lines = Table("score", *columns, title=Text(title))
    for name in next(iter(columns.values())):
        lines.add_row(name, *(column[name] for column in columns.values()))
    return lines


def _column(found: Scores) -> dict[str, str]:
    """Returns the cells of a column by the names of their rows."""
    return {
        "games": str(len(found.returns)),
        "mean": f"{found.mean:.2f}",
        "95 % confidence interval": "-"
        if found.interval is None
        else "{:.2f} to {:.2f}".format(*found.interval),
        "standard deviation": "-" if found.std is None else f"{found.std:.2f}",
        "lowest": f"{min(found.returns):g}",
        "highest": f"{max(found.returns):g}",
        "mean training return": f"{np.mean(found.training_returns):.2f}",
    }


def write(result: EvalResult, checkpoint: Path) -> None:
    """Writes `eval.json`; logs a failure instead of raising it: the scores are already printed."""
    folder = result_folder(checkpoint)
    content = json.dumps(asdict(result), indent=2).encode() + b"\n"
    try:
        write_durably(folder / RESULT_FILE, lambda file: file.write(content))
    except OSError as error:
        logger.error("%s: %s; the scores are not stored", folder / RESULT_FILE, error.strerror)


def result_folder(checkpoint: Path) -> Path:
    """Returns the folder for the results of an evaluation.

    This is the folder that contains the checkpoint. If that folder is named `checkpoints`, it is
    the folder above: the run's folder.
    """
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder
