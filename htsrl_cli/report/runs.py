"""The runs of a report: their configurations and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htsrl_cli.checkpoints.upgrade import upgrade_config
from htsrl_cli.config.plain import find_kind, flatten
from htsrl_cli.errors import ConfigError, UsageError
from htsrl_cli.tracking.bootstrap import Array
from htsrl_cli.tracking.config_file import CONFIG_FILE, read_config
from htsrl_cli.tracking.lines import METRICS_FILE, read_lines
from htsrl_cli.tracking.metric_names import EVAL_RETURN, FINAL_METRIC, RECENT_RETURN
from htsrl_cli.tracking.summary import read_summary

FINAL_SCORE = "final metric"
RECENT_SCORE = "mean score of 100 episodes"
# Keys and sections in which runs of a group may differ. If a schedule spans the run, total_steps
# must be equal.
_NOT_COMPARED = ("seed", "total_steps", "checkpoint", "log", "eval")
_SCHEDULES = ("algo.anneal_learning_rate", "algo.anneal_clip_coef")


class Curve(NamedTuple):
    """A learning curve: scores of a run at N times, sorted by env steps.

    Attributes:
        env_steps: env steps of training before each score, [N].
        seconds: seconds of training before each score, [N].
        scores: the scores, [N].
    """

    env_steps: Array
    seconds: Array
    scores: Array


@dataclass(frozen=True)
class StoredRun:
    """The configuration and the scores of a run.

    Attributes:
        folder: the run's folder.
        config: values of the configuration by dotted key.
        curves: learning curves by name of the score: FINAL_SCORE, RECENT_SCORE, or both.
        env_steps: env steps of training so far.
        seconds: seconds of training so far.
        evaluated: mean raw score of each evaluated policy, by env steps of its training.
        summary: content of `summary.json`; empty if the run has not written this file, which it
            does when it ends.
    """

    folder: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    env_steps: int
    seconds: float
    evaluated: dict[int, float]
    summary: dict[str, Any]

    @property
    def environment(self) -> str:
        """Name of the environment, such as `pong` or `CartPole-v1`."""
        return environment_name(self.config)

    @cached_property
    def treatment(self) -> dict[str, Any]:
        """The part of `config` that is equal in all runs of a group, by dotted key."""
        has_schedule = any(self.config.get(key) for key in _SCHEDULES)
        return {
            key: value
            for key, value in self.config.items()
            if not _is_left_out(key) or (has_schedule and key == "total_steps")
        }


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Returns the run folders at and below each path, sorted within a path, without duplicates.

    Raises:
        UsageError: a path has no run folder at or below it.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = sorted(config.parent for config in path.rglob(CONFIG_FILE))
        runs = [folder for folder in below if (folder / METRICS_FILE).is_file()]
        if not runs:
            raise UsageError(
                f"{path}: there is no run here (no folder with both {CONFIG_FILE} and "
                f"{METRICS_FILE}); give a run folder, or a folder that contains run folders"
            )
        found |= dict.fromkeys(folder.resolve() for folder in runs)
    return list(found)


def load_run(folder: Path) -> StoredRun | None:
    """Loads a run, which may still be in progress; returns None if it has no score yet.

    Raises:
        ValueError: a file of the folder cannot be read, or is not as htsrl writes it.
    """
    config = read_config(folder)
    try:
        return _loaded(folder, dict(flatten(upgrade_config(config))), read_lines(folder))
    except (ArithmeticError, AttributeError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"its files are not as htsrl writes them: {error!r:.200}") from error


def _loaded(folder: Path, config: dict[str, Any], lines: list[dict[str, Any]]) -> StoredRun | None:
    """Returns the run of a configuration with dotted keys and of lines of metrics."""
    training = [line for line in lines if EVAL_RETURN not in line]
    evaluated = [line for line in lines if EVAL_RETURN in line]
    found = {
        FINAL_SCORE: _curve(evaluated, FINAL_METRIC),
        RECENT_SCORE: _curve(training, RECENT_RETURN),
    }
    curves = {score: curve for score, curve in found.items() if curve is not None}
    environment_name(config)
    if not curves:
        if not lines:
            raise ValueError(f"{METRICS_FILE} has no whole line")
        return None
    env_steps, seconds = max((line["env_steps"], line["time/seconds"]) for line in lines)
    if not (env_steps > 0 and seconds > 0):
        raise ValueError(f"{METRICS_FILE} ends at {env_steps} env steps, {seconds} s")
    return StoredRun(
        folder,
        config,
        curves,
        env_steps,
        seconds,
        {line["env_steps"]: line[EVAL_RETURN] for line in evaluated},
        read_summary(folder),
    )


def _curve(lines: Sequence[dict[str, Any]], score: str) -> Curve | None:
    """Returns the learning curve of the metric `score`; None if no line has a value of the metric.

    Args:
        lines: lines of `metrics.jsonl` that have the key `score`; its value may be None.
    """
    scored = sorted(
        (line["env_steps"], line["time/seconds"], line[score])
        for line in lines
        if line[score] is not None
    )
    # Texts do not become numbers.
    return Curve(*(np.array(c) * 1 for c in zip(*scored, strict=True))) if scored else None


def environment_name(config: Mapping[str, Any]) -> str:
    """Returns the environment's name from a configuration with dotted keys."""
    kind = str(config["env.kind"])
    try:
        key = find_kind("env", kind).config.label_key
    except ConfigError:
        # The package that provides this kind is not installed.
        return kind
    return str(config[f"env.{key}"])


def _is_left_out(key: str) -> bool:
    return any(key == entry or key.startswith(f"{entry}.") for entry in _NOT_COMPARED)
