"""Logs of runs without training, for tests of metrics."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.lines import LineFile
from htsrl_cli.tracking.run_log import RunLog
from tests import sections

STEPS = 64  # of a rollout
CONFIG = sections.log(interval=200, tensorboard=False)


class Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def open_log(run_dir: Path, env_steps: int = 0, **kwargs: Any) -> RunLog:
    config = kwargs.pop("config", CONFIG)
    return RunLog(run_dir, config, {"algo": {"lr": 0.1}}, 10_000, env_steps, **kwargs)


def feed(log: RunLog, j: int) -> None:
    """Adds rollout j, whose values depend on j alone."""
    rng = np.random.default_rng(j)
    scalars = {"loss/policy": float(rng.standard_normal()), "learning_rate": 1 / (j + 3)}
    if j > 0:  # the first rollout has no update
        scalars["loss/value"] = float(rng.random())
    episodes = [
        Episode(rng.standard_normal(), rng.standard_normal(), int(rng.integers(1, 99)))
        for _ in range(rng.integers(4))
    ]
    log.rollout((j + 1) * STEPS, scalars, episodes, {"learner_busy": 0.1})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def deterministic(run_dir: Path) -> list[str]:
    """Returns each line's bytes without the wall-clock values."""
    return [
        json.dumps({name: value for name, value in line.items() if not name.startswith("time/")})
        for line in lines(run_dir)
    ]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the env steps and values of every tag from the event files."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def play(run_dir: Path, num_rollouts: int) -> None:
    with open_log(run_dir) as log:
        for j in range(num_rollouts):
            feed(log, j)
        log.finish()


def fill_disk(patch: pytest.MonkeyPatch, is_full: Callable[[Any], bool]) -> None:
    """Makes the disk appear full for the lines that `is_full` selects."""
    append = LineFile.append

    def append_if_possible(file: LineFile, line: Any) -> None:
        if is_full(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(file, line)

    patch.setattr(LineFile, "append", append_if_possible)
