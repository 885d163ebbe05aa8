"""The checkpoints of a run's folder: which are kept, and which one a resume takes."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from htsrl_cli.checkpoints.file import (
    Checkpoint,
    missing,
    read_meta,
    save_checkpoint,
    verify_checkpoint,
)
from htsrl_cli.durable import remove_leftovers, sync_folder
from htsrl_cli.errors import CheckpointError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{12})\.ckpt")


def find_checkpoint(path: Path) -> Path:
    """The file to load for `path`: a file as it is named, or the newest intact one of a run folder.

    Damaged files of a run folder are passed over with a warning each.

    Raises:
        CheckpointError: there is nothing at `path`, or no intact file in the folder.
    """
    if not path.is_dir():
        if not path.exists():
            raise missing(path)
        return path
    for candidate in sorted(_files(path / "checkpoints").values(), reverse=True):
        try:
            verify_checkpoint(candidate)
            return candidate
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    raise CheckpointError(f"{path} holds no intact checkpoint (looked for checkpoints/step_*.ckpt)")


class CheckpointStore:
    """The checkpoints of one run: writes them and keeps the newest few and the best.

    Opening a store removes what a killed process left behind and reads the metrics of the intact
    files, so that the best one is known after a resume, too.

    Args:
        run_dir: the run's folder; the files are `checkpoints/step_<env steps>.ckpt` in it.
        keep: how many of the newest to keep, at least 1.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep
        self._folder.mkdir(parents=True, exist_ok=True)
        sync_folder(run_dir)
        remove_leftovers(self._folder)
        self._metrics = dict(_stored_metrics(self._folder))
        self._unrated: set[int] = set()

    @property
    def unrated(self) -> list[int]:
        """Env steps of the checkpoints that are kept until `rate` says how good they are."""
        return sorted(self._unrated)

    def unrate(self) -> None:
        """Has all checkpoints wait for `rate`, whatever metric they were saved with."""
        self._unrated = set(self._metrics)

    def rate(self, env_steps: int, metric: float | None) -> None:
        """Gives an unrated checkpoint its metric, and drops those no longer kept."""
        self._metrics[env_steps] = metric
        self._unrated.remove(env_steps)
        self._prune()

    def save(
        self, env_steps: int, metric: float | None, checkpoint: Checkpoint, is_rated: bool = True
    ) -> bool:
        """Saves a checkpoint, then drops those no longer kept.

        An `OSError` (a full disk) is logged and leaves all previous files as they are.

        Args:
            env_steps: names the file; one of the same name is replaced.
            metric: higher is better; None or NaN never counts as best. Stored in `meta`.
            checkpoint: is not changed.
            is_rated: the metric is this checkpoint's; else it is kept until `rate` says which is.

        Returns:
            Whether the checkpoint is on the disk.
        """
        meta = checkpoint.meta | {"env_steps": env_steps, "metric": metric}
        path, saved = self.path(env_steps), False
        try:
            save_checkpoint(path, Checkpoint(checkpoint.arrays, meta))
            saved = True
            self._metrics[env_steps] = metric
            if not is_rated:
                self._unrated.add(env_steps)
            self._prune()
        except OSError as error:
            logger.error("checkpoint %s: %s; the previous ones are kept", path, error.strerror)
        return saved

    def path(self, env_steps: int) -> Path:
        """Returns the path of the checkpoint at `env_steps`."""
        return self._folder / f"step_{env_steps:012d}.ckpt"

    def discard_after(self, env_steps: int) -> None:
        """Removes the checkpoints of a future that a resume at `env_steps` will write again."""
        for steps, path in _files(self._folder).items():
            if steps > env_steps:
                path.unlink(missing_ok=True)
                self._metrics.pop(steps, None)
                self._unrated.discard(steps)
        sync_folder(self._folder)

    def _prune(self) -> None:
        kept = set(sorted(self._metrics)[-self._keep :]) | self._best() | self._unrated
        for steps, path in _files(self._folder).items():
            if steps not in kept:
                path.unlink(missing_ok=True)
        self._metrics = {steps: self._metrics[steps] for steps in kept}

    def _best(self) -> set[int]:
        """The step of the highest metric, the earliest of equals; empty without metrics."""
        ranked = [
            (metric, -steps)
            for steps, metric in self._metrics.items()
            if metric is not None and not math.isnan(metric) and steps not in self._unrated
        ]
        return {-max(ranked)[1]} if ranked else set()


def _stored_metrics(folder: Path) -> Iterator[tuple[int, float | None]]:
    """Yields the env steps and the metric of each intact file."""
    for steps, path in _files(folder).items():
        with suppress(CheckpointError):
            yield steps, read_meta(path)["metric"]


def _files(folder: Path) -> dict[int, Path]:
    """Returns the checkpoints in `folder` by env steps, whether intact or not."""
    names = folder.iterdir() if folder.is_dir() else ()
    return {int(match[1]): path for path in names if (match := _NAME.fullmatch(path.name))}
