"""The checkpoints in a run's folder: which ones are kept, and which one a resume loads."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from htsrl_cli.checkpoints.file import (
    Checkpoint,
    load_checkpoint,
    missing,
    read_meta,
    save_checkpoint,
    verify_checkpoint,
)
from htsrl_cli.durable import remove_leftovers, sync_folder
from htsrl_cli.errors import CheckpointError

logger = logging.getLogger(__name__)

_ResultT = TypeVar("_ResultT")
_NAME = re.compile(r"step_(\d{12})\.ckpt")


def find_checkpoint(path: Path) -> Path:
    """Returns `path` if it is a file, and the newest intact checkpoint if it is a run folder.

    Logs a warning for each damaged file that it skips. If a run trains in the folder, the run may
    delete the file at any time: `open_checkpoint` is then the function to use.

    Raises:
        CheckpointError: `path` does not exist, or the run folder has no intact checkpoint.
    """
    if not path.is_dir():
        if not path.exists():
            raise missing(path)
        return path
    return _newest(path, verify_checkpoint)[0]


def open_checkpoint(path: Path) -> tuple[Path, Checkpoint]:
    """Returns the path and the content of the checkpoint that `find_checkpoint` finds.

    Raises:
        CheckpointError: as for `find_checkpoint`, or `path` is a file that cannot be loaded.
    """
    return _newest(path, load_checkpoint) if path.is_dir() else (path, load_checkpoint(path))


def _newest(path: Path, read: Callable[[Path], _ResultT]) -> tuple[Path, _ResultT]:
    """Reads the newest intact checkpoint of a run folder; returns its path and the result.

    A run that trains in the folder deletes old checkpoints. If it deletes the file that is being
    read, there is a newer one, so the folder is read again.
    """
    candidates = sorted(_files(path / "checkpoints").values(), reverse=True)
    for candidate in candidates:
        try:
            return candidate, read(candidate)
        except CheckpointError as error:
            if not candidate.exists():
                return _newest(path, read)
            logger.warning("skipped a checkpoint: %s", error)
    if _files(path):
        raise CheckpointError(f"{path} is no run folder: give {path.parent}, or a file in {path}")
    raise CheckpointError(
        f"{path} has no intact checkpoint (looked for checkpoints/step_*.ckpt): give a run folder "
        "or a checkpoint file"
    )


class CheckpointStore:
    """The checkpoints of one run, of which the newest ones and the best one are kept.

    The constructor deletes the temporary files of a killed process. It also reads the metrics of
    all intact checkpoints, so that the best checkpoint is known after a resume.

    Args:
        run_dir: the run's folder. Checkpoints are its files `checkpoints/step_<env steps>.ckpt`.
        keep: number of newest checkpoints to keep, at least 1.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep
        self._folder.mkdir(parents=True, exist_ok=True)
        sync_folder(run_dir)
        remove_leftovers(self._folder)
        files = _files(self._folder)
        # Only files of this run are ever deleted: those of its earlier processes, and its own.
        self._own = set(files)
        self._metrics = dict(_stored_metrics(files))
        self._waiting: set[int] = set()
        self._has_unproven = False

    @property
    def waiting(self) -> list[int]:
        """Checkpoints that wait for a call of `set_metric`, as their env steps in ascending order.

        A waiting checkpoint is kept.
        """
        return sorted(self._waiting)

    @property
    def best(self) -> tuple[Path, float] | None:
        """The path and the metric of the best checkpoint; None if no checkpoint has a metric.

        The best checkpoint is the one with the highest final metric. If there are several, it is
        the earliest of them. Metrics that are None or NaN do not count.
        """
        ranked = [
            (metric, -steps)
            for steps, metric in self._metrics.items()
            if metric is not None and not math.isnan(metric) and steps not in self._waiting
        ]
        if not ranked:
            return None
        metric, negative_steps = max(ranked)
        return self.path(-negative_steps), metric

    def forget_metrics(self) -> None:
        """Marks all checkpoints as waiting for `set_metric`, whatever metric they have now."""
        self._waiting = set(self._metrics)

    def set_metric(self, env_steps: int, metric: float | None) -> None:
        """Sets the metric of a waiting checkpoint, then deletes checkpoints that are not needed.

        The newest checkpoints, the best one and those that wait for `set_metric` are needed. The
        metric that is stored in the file does not change.

        Raises:
            KeyError: the checkpoint is not waiting.
        """
        self._waiting.remove(env_steps)
        self._metrics[env_steps] = metric
        self._prune()

    def save(
        self,
        env_steps: int,
        metric: float | None,
        checkpoint: Checkpoint,
        is_final: bool = True,
        is_proven: bool = True,
    ) -> bool:
        """Saves a checkpoint, then deletes checkpoints that are not needed any more.

        An `OSError`, for example from a full disk, is logged and not raised. If the checkpoint
        cannot be written, all previous files are kept.

        Args:
            env_steps: env steps of the run so far. This number is part of the file's name. An
                existing file is replaced.
            metric: the metric to store in `meta`. Higher is better; None and NaN are never best.
            checkpoint: the content, which is not modified.
            is_final: True if `metric` is final; False to keep the file until `set_metric` is
                called.
            is_proven: False if the update from the experience in the checkpoint may not be finite.
                At least one checkpoint before it is then kept until `prove` is called.

        Returns:
            True if the checkpoint is on disk.
        """
        meta = checkpoint.meta | {"env_steps": env_steps, "metric": metric}
        path = self.path(env_steps)
        try:
            save_checkpoint(path, Checkpoint(checkpoint.arrays, meta))
        except OSError as error:
            logger.error("cannot save %s: %s; previous checkpoints are kept", path, error.strerror)
            return False
        self._own.add(env_steps)
        self._metrics[env_steps] = metric
        if not is_final:
            self._waiting.add(env_steps)
        self._has_unproven = not is_proven
        self._prune()
        return True

    def prove(self) -> None:
        """Says that the update from the newest checkpoint's experience has been made."""
        if self._has_unproven:
            self._has_unproven = False
            self._prune()

    def path(self, env_steps: int) -> Path:
        """Returns the path of the checkpoint at `env_steps`."""
        return self._folder / f"step_{env_steps:012d}.ckpt"

    def discard_after(self, env_steps: int) -> None:
        """Deletes the checkpoints of more than `env_steps` env steps; the run writes them again."""
        for steps in sorted(self._own):
            if steps > env_steps:
                self.path(steps).unlink(missing_ok=True)
                self._own.remove(steps)
                self._metrics.pop(steps, None)
                self._waiting.discard(steps)
        sync_folder(self._folder)

    def discard(self, env_steps: int) -> None:
        """Deletes the checkpoint at `env_steps`, unless it is the only one; logs a warning.

        An `OSError` is logged and not raised.
        """
        if set(self._metrics) <= {env_steps}:
            return
        path = self.path(env_steps)
        if not self._delete(env_steps):
            return
        self._metrics.pop(env_steps, None)
        self._waiting.discard(env_steps)
        logger.warning(
            "deleted %s: the update from its experience is not finite; a resume continues from the "
            "checkpoint before it",
            path,
        )

    def _prune(self) -> None:
        num_newest = max(self._keep, 2) if self._has_unproven else self._keep
        best, newest = self.best, sorted(self._metrics)[-num_newest:]
        kept = {self.path(steps) for steps in (*newest, *self._waiting)}
        if best:
            kept.add(best[0])
        for steps in sorted(self._own):
            if self.path(steps) not in kept:
                self._delete(steps)
        self._metrics = {s: metric for s, metric in self._metrics.items() if self.path(s) in kept}

    def _delete(self, env_steps: int) -> bool:
        """Deletes a checkpoint's file; if this fails, logs an error and returns False."""
        path = self.path(env_steps)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("cannot delete %s: %s", path, error.strerror)
            return False
        self._own.discard(env_steps)
        return True


def _stored_metrics(files: Mapping[int, Path]) -> Iterator[tuple[int, float | None]]:
    """Yields the env steps and the metric of each intact checkpoint."""
    for steps, path in files.items():
        with suppress(CheckpointError):
            yield steps, read_meta(path).get("metric")


def _files(folder: Path) -> dict[int, Path]:
    """Returns a dict from env steps to the checkpoint files in `folder`, also damaged files.

    Logs a warning for each folder, pipe or other entry that has the name of a checkpoint but is no
    file. Reading a pipe would wait for ever.
    """
    found: dict[int, Path] = {}
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := _NAME.fullmatch(entry.name):
                # A file that a run has just deleted counts, so that readers read the folder again.
                if _is_file(entry):
                    found[int(match[1])] = folder / entry.name
                else:
                    logger.warning("ignored %s, which is no regular file: move it away", entry.path)
    return found


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Returns True for a file or a link to a file; False for a loop of links."""
    try:
        return entry.is_file()
    except OSError:
        return False
