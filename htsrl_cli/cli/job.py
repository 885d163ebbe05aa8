"""Plans one job of `htsrl train`: its configuration, its folder, and where it goes on.

The command line plans every job before Hydra runs, and each job plans itself again where it runs
(a launcher may have sent it to another process). Free of torch.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.cli.compose import parse_overrides, resolved, to_train_config
from htsrl_cli.config.auto import AUTO
from htsrl_cli.config.identity import changes_no_result, equivalent
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.plain import flatten, nest, to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.config.wording import shown
from htsrl_cli.durable import write_durably
from htsrl_cli.errors import CheckpointError, ConfigError
from htsrl_cli.plugins import SECTIONS

logger = logging.getLogger(__name__)

# Groups of which an option sets keys of any section.
_PRESETS = ("experiment", "debug")
_LOCK_FILE = ".lock"
_LOCK_PERIOD_S = 0.2
# What flock(2) answers where the file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
# They decide which other keys there are, so a difference in them is named first.
_SCHEMA_KEYS = tuple(f"{section}.{tag}" for section, (tag, _) in SECTIONS.items())


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        config: validated.
        run_dir: the folder to write into.
        checkpoint: the file to go on from; None starts afresh.
    """

    config: TrainConfig
    run_dir: Path
    checkpoint: Path | None


def plan_job(cfg: DictConfig, typed: Sequence[str], run_dir: Path, cwd: Path) -> Job:
    """Plans the job that the composed `train.yaml` asks for.

    Args:
        cfg: as Hydra composed it.
        typed: the overrides on the command line; a resume applies nothing else.
        run_dir: the folder that Hydra gives to the job.
        cwd: what a relative `resume` is relative to.

    Raises:
        UsageError: a key has to change, there is nothing to go on from, or `run_dir` holds
            another run.
    """
    resume = cfg.get("resume")
    if resume is None or (resume == AUTO and not holds_run(run_dir)):
        _refuse_other_run(run_dir)
        return Job(to_train_config(cfg), run_dir, None)
    source = _source(resume, run_dir, cwd)
    checkpoint = find_checkpoint(source)
    folder = _run_folder(source)
    if folder is None:
        _refuse_other_run(run_dir)
    config = _resumed_config(cfg, typed, checkpoint)
    return Job(config, folder or run_dir, checkpoint)


def holds_run(run_dir: Path) -> bool:
    """Returns True if `run_dir` has checkpoints, damaged ones included."""
    folder = run_dir / "checkpoints"
    return folder.is_dir() and any(folder.iterdir())


@contextmanager
def hold_folder(run_dir: Path, patience_s: float) -> Iterator[None]:
    """Keeps other processes from training in `run_dir`, and waits for one that does.

    Raises:
        ConfigError: another process still trains there after `patience_s` seconds.
    """
    # Writable, as network file systems want it, which lock files by POSIX's record locks.
    with (run_dir / _LOCK_FILE).open("a") as file:
        deadline, is_waiting = time.monotonic() + patience_s, False
        while not _try_lock(file):
            if not is_waiting:
                logger.info("another process trains in %s: waiting for its end", run_dir)
            is_waiting = True
            if time.monotonic() > deadline:
                remedy = "another process trains in this folder: end it first, or choose another"
                raise ConfigError("hydra.run.dir", run_dir, remedy)
            time.sleep(_LOCK_PERIOD_S)
        yield


def _try_lock(file: IO[str]) -> bool:
    """Locks a file; False where another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: %s; nothing keeps others from training here", file.name, error.strerror)
    return True


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """Writes the resolved configuration to `config.yaml`, which appears whole or not at all."""
    content = OmegaConf.to_yaml(OmegaConf.create(to_plain(config))).encode()
    write_durably(run_dir / "config.yaml", lambda file: file.write(content))


def _source(resume: object, run_dir: Path, cwd: Path) -> Path:
    """The run folder or checkpoint file that `resume` names."""
    if not isinstance(resume, str) or not resume:
        raise ConfigError("resume", shown(resume), "must be a run folder, a checkpoint or auto")
    return run_dir if resume == AUTO else cwd / resume


def _run_folder(source: Path) -> Path | None:
    """The run folder that `source` is or lies in; None for a file kept elsewhere."""
    if source.is_dir():
        return source
    folder = source.resolve().parent
    return folder.parent if folder.name == "checkpoints" else None


def _refuse_other_run(run_dir: Path) -> None:
    if holds_run(run_dir):
        remedy = "the folder holds a run: go on with resume=auto, or choose another folder"
        raise ConfigError("hydra.run.dir", run_dir, remedy)


def _resumed_config(cfg: DictConfig, typed: Sequence[str], checkpoint: Path) -> TrainConfig:
    """Returns the stored configuration with what was typed, as far as a resume may change it."""
    keys = {override.key_or_group for override in parse_overrides(typed)}
    # Choosing a runner is no word on the sync interval, which its file also has.
    sections = {"runner.name" if key == "runner" else key for key in keys}
    stored = load_checkpoint(checkpoint).meta.get("config", {})
    try:
        load_train_config(stored)
    except (AttributeError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{checkpoint} holds no configuration that this version of htsrl knows ({error})"
        ) from error
    return load_train_config(merge(stored, resolved(cfg), sections))


def merge(stored: Mapping[str, Any], asked: Mapping[str, Any], typed: set[str]) -> dict[str, Any]:
    """Returns `stored` with the values of `asked` under the keys, sections and groups in `typed`.

    A preset (`experiment`, `debug`) counts as if every key had been typed: the same command line
    with `resume=auto` goes on with the same run. What `auto` came to when the run began stays,
    where that decides results.

    Raises:
        ConfigError: a value differs that a resume must not change.
    """
    old_values = dict(flatten(stored))
    merged = dict(old_values)
    ordered = sorted(flatten(asked), key=lambda entry: entry[0] not in _SCHEMA_KEYS)
    for key, value in ordered:
        if not _is_typed(key, typed) or (value == AUTO and not changes_no_result(key)):
            continue
        old = old_values.get(key)
        if not _may_change(key, old, value):
            remedy = (
                f"the run has {shown(old)}; a resume can change worker counts, timeouts, logging, "
                "evaluation and checkpoints, and raise total_steps"
            )
            raise ConfigError(key, shown(value), remedy)
        merged[key] = value
    return nest(merged)


def _is_typed(key: str, typed: set[str]) -> bool:
    parts = key.split(".")
    sections = {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    return not typed.isdisjoint(_PRESETS) or not sections.isdisjoint(typed)


def _may_change(key: str, old: Any, new: Any) -> bool:
    if equivalent(key, old) == equivalent(key, new) or changes_no_result(key):
        return True
    return key == "total_steps" and not (isinstance(new, int | float) and new <= old)
