"""The destinations of a run's lines: `metrics.jsonl`, TensorBoard, trackers, the terminal."""

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
    """The destinations of a run's lines of metrics.

    A failed write is logged as an error, not raised. The constructor deletes the lines of
    `metrics.jsonl` that `last_line` and `evaluated` do not keep.

    Args:
        run_dir: the run's folder.
        config: selects the trackers to write to.
        hyperparameters: plain values, possibly nested, for TensorBoard and other trackers.
        metric: the metric by which TensorBoard compares runs.
        last_line: env steps of the last training line that is kept.
        evaluated: env steps of the evaluated policies whose lines are kept.

    Attributes:
        display: the progress display on standard error.

    Raises:
        OSError: `metrics.jsonl` or the event file cannot be opened.
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
        """Writes a line to all destinations.

        Returns:
            False if `metrics.jsonl` could not be written. The other destinations then do not get
            the line either.
        """
        try:
            self._lines.append(line)
        except OSError as error:
            steps = line["env_steps"]
            logger.error(
                "%s: %s; no line was written at %d env steps", METRICS_FILE, error.strerror, steps
            )
            return False
        for name, tracker in list(self._trackers.items()):
            with self._reported(name):
                tracker.write(line)
        return True

    def show(self, gif: bytes, env_steps: int) -> None:
        """Adds the GIF of an evaluated policy to TensorBoard, if the run uses TensorBoard."""
        with self._reported("TensorBoard"):
            if events := self._events:
                events.write_animation(gif, env_steps)

    def show_lags(self, lags: Mapping[int, int], env_steps: int) -> None:
        """Adds a histogram of policy lags to TensorBoard, if the run uses TensorBoard.

        Args:
            lags: for each policy lag, the number of rows with it.
        """
        with self._reported("TensorBoard"):
            if events := self._events:
                events.write_lags(lags, env_steps)

    def close(self, is_complete: bool) -> None:
        """Closes files and trackers, and restores the terminal.

        Args:
            is_complete: True if the run reached its total env steps.
        """
        self.display.close()
        self._lines.close()
        for name, tracker in list(self._trackers.items()):
            with self._reported(name):
                tracker.close(is_complete)

    @property
    def _events(self) -> EventFiles | None:
        events = self._trackers.get("TensorBoard")
        return events if isinstance(events, EventFiles) else None

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Logs a tracker's exception in the `with` block, and stops using the tracker."""
        try:
            yield
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            logger.error(
                "%s: %s; nothing more is sent to it until the run is resumed", name, reason
            )
            self._trackers.pop(name, None)


def _write_hidden(events: EventFiles, run_dir: Path, last_line: int) -> None:
    """Writes again the lines and GIFs of evaluated policies that a resume hides in TensorBoard.

    A resume hides all events after `last_line`, but `metrics.jsonl` may keep later lines of
    evaluated policies.
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
    """Yields dotted names and their values, converted to types that trackers accept."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, Plain) else str(value)
