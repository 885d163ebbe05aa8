"""Plan of one job of `htsrl train`: its configuration, folder, and checkpoint to resume from.

The command line plans every job before Hydra runs. Each job is planned again in the process that
runs it, which a launcher may have started. At the top level, this module does not import torch.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.cli import listing, tuned
from htsrl_cli.cli.compose import (
    config_dir,
    parse_overrides,
    resolved,
    to_train_config,
    tuned_job,
    typed_words,
)
from htsrl_cli.config.auto import AUTO
from htsrl_cli.config.identity import changes_no_result, equivalent
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.plain import flatten, nest, to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.config.wording import shown
from htsrl_cli.durable import write_durably
from htsrl_cli.errors import CheckpointError, ConfigError
from htsrl_cli.plugins import SECTIONS

if TYPE_CHECKING:
    from htsrl_cli.runners.run import Outcome

logger = logging.getLogger(__name__)

# Groups whose options set keys in any section.
_PRESETS = ("experiment", "tuned", "debug")
_LOCK_FILE = ".lock"
_LOCK_PERIOD_S = 0.2
# errno values of flock(2) on file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
# A difference in one of these keys is reported first, because they decide which other keys exist.
_SCHEMA_KEYS = tuple(f"{section}.{tag}" for section, (tag, _) in SECTIONS.items())


@dataclass(frozen=True)
class Job:
    """Plan of one training run.

    Attributes:
        config: validated configuration of the run.
        run_dir: folder that the run writes to.
        checkpoint: checkpoint file to resume from; None for a new run.
    """

    config: TrainConfig
    run_dir: Path
    checkpoint: Path | None


def run_job(cfg: DictConfig) -> tuple[Job, Outcome]:
    """Trains as Hydra's current job; returns the plan and the result.

    Args:
        cfg: the composed configuration.

    Raises:
        HtsrlError: the job cannot run as configured, or the run failed; see `plan_job` and
            `htsrl_cli.runners.run.train`.
    """
    from htsrl_cli.runners import run as runner

    hydra = HydraConfig.get()
    typed = typed_words(hydra, "task")
    cfg, settings = tuned_job(cfg)
    plan = partial(plan_job, cfg, typed, Path(hydra.runtime.output_dir), Path(hydra.runtime.cwd))
    job = plan()
    with hold_folder(job.run_dir, job.config.runner.stop_grace_s):
        # Another process may have trained in this folder until now, so the plan may be out of date.
        job = plan()
        write_config(job.config, job.run_dir)
        if job.checkpoint is None and settings != AUTO:
            logger.info("%s", tuned_line(settings, job.config, config_dir(hydra)))
        return job, runner.train(job.config, job.run_dir, job.checkpoint)


def plan_job(cfg: DictConfig, typed: Sequence[str], run_dir: Path, cwd: Path) -> Job:
    """Plans the job of a composed `train.yaml`.

    Args:
        cfg: the composed configuration.
        typed: overrides from the command line; a resume applies only these to the stored
            configuration.
        run_dir: folder that Hydra gives to the job.
        cwd: folder against which a relative path in `resume` is resolved.

    Raises:
        UsageError: a key or value is invalid, there is nothing to resume, or the job would
            write a second run to `run_dir`.
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
    """Returns True if `run_dir` contains checkpoints, intact or damaged."""
    return any((run_dir / "checkpoints").glob("*.ckpt"))


@contextmanager
def hold_folder(run_dir: Path, patience_s: float) -> Iterator[None]:
    """Locks `run_dir` in a `with` block, so that no other process trains in it meanwhile.

    Waits for the lock if another process holds it, and logs this. On a file system without locks,
    logs a warning and does not lock.

    Raises:
        ConfigError: another process still holds the lock after `patience_s` seconds.
    """
    # Network file systems emulate flock by POSIX record locks, which need a file open for writing.
    with (run_dir / _LOCK_FILE).open("a") as file:
        deadline, is_waiting = time.monotonic() + patience_s, False
        while not _try_lock(file):
            if not is_waiting:
                logger.info("another process is training in %s: waiting for it to end", run_dir)
            is_waiting = True
            if time.monotonic() > deadline:
                remedy = "another process is training here: stop it, or choose another folder"
                raise ConfigError("hydra.run.dir", run_dir, remedy)
            time.sleep(_LOCK_PERIOD_S)
        yield


def _try_lock(file: IO[str]) -> bool:
    """Locks a file; returns False if another process holds the lock.

    On a file system without locks, it logs a warning and returns True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "cannot lock %s (%s): do not start a second run in this folder",
            file.name,
            error.strerror,
        )
    return True


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """Writes the resolved configuration to `config.yaml` in `run_dir`, atomically."""
    content = OmegaConf.to_yaml(OmegaConf.create(to_plain(config))).encode()
    write_durably(run_dir / "config.yaml", lambda file: file.write(content))


def tuned_line(name: str, config: TrainConfig, config_dir: str | None) -> str:
    """Returns what a run's log says about its tuned settings: their source, and what they set.

    Args:
        name: the option of the group `tuned`.
        config: the configuration of the run, which may replace some of the settings.
        config_dir: the user's additional folder of YAML files (`--config-dir`).
    """
    path = listing.find(tuned.GROUP, name, config_dir)
    settings: Any = OmegaConf.to_container(OmegaConf.load(path))
    values = dict(flatten(to_plain(config)))
    kept = [f"{key}={shown(value)}" for key, value in flatten(settings) if values.get(key) == value]
    return f"tuned={name}: {listing.description(path)} {' '.join(kept)}"


def _source(resume: object, run_dir: Path, cwd: Path) -> Path:
    """Returns the run folder or checkpoint file that `resume` names; `auto` names `run_dir`."""
    if not isinstance(resume, str) or not resume:
        raise ConfigError("resume", shown(resume), "must be a run folder, a checkpoint or auto")
    return run_dir if resume == AUTO else cwd / resume


def _run_folder(source: Path) -> Path | None:
    """Returns the run folder that `source` is or lies in; None for a file outside a run folder."""
    if source.is_dir():
        return source
    folder = source.resolve().parent
    return folder.parent if folder.name == "checkpoints" else None


def _refuse_other_run(run_dir: Path) -> None:
    if holds_run(run_dir):
        remedy = "this folder holds a run: resume it with resume=auto, or choose another folder"
        raise ConfigError("hydra.run.dir", run_dir, remedy)


def _resumed_config(cfg: DictConfig, typed: Sequence[str], checkpoint: Path) -> TrainConfig:
    """Returns the configuration in `checkpoint`, with the changes that the user typed."""
    keys = {override.key_or_group for override in parse_overrides(typed)}
    # `runner=NAME` asks only for another runner, but the runner's YAML file also sets other keys.
    sections = {"runner.name" if key == "runner" else key for key in keys}
    stored = load_checkpoint(checkpoint).meta.get("config", {})
    try:
        load_train_config(stored)
    except (AttributeError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{checkpoint}: this version of htsrl cannot use the configuration in the checkpoint "
            f"({error}); resume with the version of htsrl that saved it"
        ) from error
    return load_train_config(merge(stored, resolved(cfg), sections))


def merge(stored: Mapping[str, Any], asked: Mapping[str, Any], typed: set[str]) -> dict[str, Any]:
    """Returns `stored`, with the values of `asked` for the keys, sections and groups in `typed`.

    If `typed` contains a preset (`experiment`, `tuned`, `debug`), every key counts as typed,
    because a preset can set any key. If a key that can change results is set to `auto`, its stored
    value is kept.

    Args:
        stored: nested plain values from the checkpoint.
        asked: nested plain values that were composed from the command line.
        typed: names of the keys, sections and groups on the command line.

    Raises:
        ConfigError: a value differs from the stored value, and a resume must not change it.
    """
    old_values = dict(flatten(stored))
    merged = dict(old_values)
    ordered = sorted(flatten(asked), key=lambda entry: entry[0] not in _SCHEMA_KEYS)
    for key, value in ordered:
        if not _is_typed(key, typed) or (value == AUTO and not changes_no_result(key)):
            continue
        old = old_values.get(key)
        if not _may_change(key, old, value):
            has = shown(old) if key in old_values else "no such key"
            remedy = (
                f"the run has {has}: leave this key out; a resume can only change worker "
                "counts, timeouts, logging, evaluation and checkpoints, and raise total_steps"
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
