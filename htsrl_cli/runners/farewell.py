"""The last lines of `htsrl train`: the result of the run, and the commands that use it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from htsrl_cli.config.identity import named_modules
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.tracking.summary import read_summary


def lines(config: TrainConfig, run_dir: Path) -> list[str]:
    """Returns the lines for a run that is complete or was stopped, from its `summary.json`."""
    summary = read_summary(run_dir)
    is_complete = summary["env_steps"] >= config.total_steps
    relative = os.path.relpath(run_dir)
    path = str(run_dir) if relative.startswith("..") else relative
    folder = shlex.quote(path)
    goal, longer = "go on", ""
    if is_complete:
        goal, longer = "train longer", f" total_steps={2 * config.total_steps}"
    # Commands that run code which the checkpoint names must say so.
    named = "".join(f" {shlex.quote(source)}" for source in named_modules(config))
    trusted = " trusted=true" if named else ""
    return [
        f"{'complete' if is_complete else 'stopped'} after {summary['env_steps']:,} env steps and "
        f"{timedelta(seconds=round(summary['seconds']))} of training "
        f"({summary['env_steps_per_second']:,.0f} env steps/s)",
        *_scores(summary, is_evaluated=bool(config.eval.interval)),
        f"run folder: {path}",
        f"  play games:  htsrl eval checkpoint={folder}{trusted}",
        f"  see curves:  htsrl report {folder}",
        f"  {goal}: htsrl train resume={folder}{named}{longer}",
    ]


def _scores(summary: Mapping[str, Any], is_evaluated: bool) -> list[str]:
    """Returns a line for the training score, the score of evaluations and the best checkpoint."""
    if summary["training_return"] is None:
        return ["score: none, because no episode has ended"]
    found = [f"training score: {summary['training_return']:.4g} (mean of the last 100 episodes)"]
    if is_evaluated and summary["metric"] is not None:
        found.append(f"evaluation score: {summary['metric']:.4g} (mean of the last ten policies)")
    if summary["best_checkpoint"] is not None:
        name = f"checkpoints/{summary['best_checkpoint']}"
        found.append(f"best checkpoint: {name} ({summary['best_metric']:.4g})")
    return found
