"""The places that a run's lines go to: `metrics.jsonl`, TensorBoard, trackers, the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from htsrl_cli.config.sections import LogConfig
from htsrl_cli.durable import remove_leftovers
from htsrl_cli.tracking.film import animation, film_path
from htsrl_cli.tracking.lines import METRICS_FILE, LineFile, read_lines
from htsrl_cli.tracking.metric_names import EVAL_RETURN, Line
from htsrl_cli.tracking.progress import open_display
from htsrl_cli.tracking.tensorboard import EventFiles, Plain
from htsrl_cli.tracking.trackers import MlflowTracker, Tracker, WandbTracker

logger = logging.getLogger(__name__)


class Outputs:
    """The places that lines go to. A failure to write is an error in the log, not the run's end.

    Args:
        run_dir: the run's folder.
        config: the trackers to write to.
        hyperparameters: plain values, nested or not.
        metric: the metric by which TensorBoard compares runs.
        last_line: env steps of the last line of the training that is kept.
        evaluated: env steps of the evaluated policies whose lines are kept.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LogConfig,
        hyperparameters: Mapping[str, object],
        metric: str,
        last_line: int,
        evaluated: Collection[int],
    ) -> None:
        def keep(line: dict[str, Any]) -> bool:
            steps = line["env_steps"]
            return steps in evaluated if EVAL_RETURN in line else steps <= last_line

        remove_leftovers(run_dir)
        self._lines = LineFile(run_dir / METRICS_FILE, keep)
        values = dict(_plain(hyperparameters))
        self._trackers: dict[str, Tracker] = {}
        if config.tensorboard:
            events = EventFiles(run_dir, values, metric, last_line)
            _write_hidden(events, run_dir, last_line)
            self._trackers["TensorBoard"] = events
        if config.wandb is not None:
            with self._reported("Weights & Biases"):
                tracker: Tracker = WandbTracker(config.wandb, run_dir, hyperparameters)
                self._trackers["Weights & Biases"] = tracker
        if config.mlflow is not None:
            with self._reported("MLflow"):
                self._trackers["MLflow"] = MlflowTracker(config.mlflow, run_dir, values)
        self.display = open_display(sys.stderr)

    def write(self, line: Line) -> bool:
        """Writes a line; returns False if the disk had no space for it, and it went nowhere."""
        try:
            self._lines.append(line)
        except OSError as error:
            steps = line["env_steps"]
            logger.error("%s: %s; no line at %d env steps", METRICS_FILE, error.strerror, steps)
            return False
        for name, tracker in list(self._trackers.items()):
            with self._reported(name):
                tracker.write(line)
        return True

    def show(self, gif: bytes, env_steps: int) -> None:
        """Shows the film of an evaluated policy in TensorBoard."""
        events = self._trackers.get("TensorBoard")
        if isinstance(events, EventFiles):
            with self._reported("TensorBoard"):
                events.write_animation(gif, env_steps)

    def close(self, is_complete: bool) -> None:
        """Closes files and trackers, and restores the terminal."""
        self.display.close()
        self._lines.close()
        for name, tracker in list(self._trackers.items()):
            with self._reported(name):
                tracker.close(is_complete)

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Logs whatever a tracker raises, and drops the tracker: none works after a failure."""
        try:
            yield
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            logger.error("%s: %s; no more is written there", name, reason)
            self._trackers.pop(name, None)


def _write_hidden(events: EventFiles, run_dir: Path, last_line: int) -> None:
    """Writes again what TensorBoard hides after `last_line` and `metrics.jsonl` has kept.

    Event files are cut back by env steps alone; lines of evaluated policies may stay.
    """
    for line in read_lines(run_dir):
        env_steps = line["env_steps"]
        if env_steps <= last_line:
            continue
        events.write(line)
        film = film_path(run_dir, env_steps)
        if EVAL_RETURN in line and film.exists():
            events.write_animation(animation(film), env_steps)


def _plain(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Yields dotted names, and values of the types that trackers take."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, Plain) else str(value)
