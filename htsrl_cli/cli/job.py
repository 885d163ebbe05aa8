"""Plan of one job of `htsrl train`: its configuration, folder, and checkpoint to resume from.

The command line plans every job before Hydra runs. Each job is planned again in the process that
runs it, which a launcher may have started. At the top level, this module does not import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from htsrl_cli.checkpoints.store import open_checkpoint
from htsrl_cli.checkpoints.upgrade import upgrade_config
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
from htsrl_cli.config.identity import changes_no_result, equivalent, named_modules
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.plain import flatten, nest, to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.config.wording import shown
from htsrl_cli.durable import write_durably
from htsrl_cli.errors import CheckpointError, ConfigError
from htsrl_cli.plugins import SECTIONS
from htsrl_cli.runners.folder import hold_folder, usable
from htsrl_cli.tracking.config_file import CONFIG_FILE, read_config

if TYPE_CHECKING:
    from htsrl_cli.runners.run import Outcome

logger = logging.getLogger(__name__)

# Groups whose options set keys in any section.
_PRESETS = ("experiment", "tuned", "debug")
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
    with ExitStack() as stack:
        with usable(job.run_dir):
            held = stack.enter_context(hold_folder(job.run_dir, job.config.runner.stop_grace_s))
            # Another process may have trained in this folder until now, so the plan may be out of
            # date.
            job = plan()
            write_config(job.config, job.run_dir)
        if job.checkpoint is None and settings != AUTO:
            logger.info("%s", tuned_line(settings, job.config, config_dir(hydra)))
        return job, runner.train(job.config, job.run_dir, job.checkpoint, held.check)


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
    checkpoint, content = open_checkpoint(source)
    folder = _run_folder(source)
    if folder is None:
        _refuse_other_run(run_dir)
    stored = content.meta.get("config", {})
    if folder is not None:
        _refuse_foreign(checkpoint, stored, folder)
    config = _resumed_config(cfg, typed, checkpoint, stored)
    return Job(config, folder or run_dir, checkpoint)


def holds_run(run_dir: Path) -> bool:
    """Returns True if `run_dir` contains checkpoints, intact or damaged."""
    return any(path.is_file() for path in (run_dir / "checkpoints").glob("*.ckpt"))


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """Writes the resolved configuration to `config.yaml` in `run_dir`, atomically."""
    content = OmegaConf.to_yaml(OmegaConf.create(to_plain(config))).encode()
    write_durably(run_dir / CONFIG_FILE, lambda file: file.write(content))


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


def _refuse_foreign(checkpoint: Path, stored: Mapping[str, Any], folder: Path) -> None:
    """Raises `CheckpointError` if the checkpoint in a run folder belongs to another run.

    Compares the values of keys that a resume cannot change. If `config.yaml` cannot be read, logs a
    warning instead.

    Args:
        stored: the configuration in the checkpoint.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        return
    try:
        named = dict(flatten(upgrade_config(read_config(folder))))
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("cannot check that the checkpoint belongs to this run: %s", error)
        return
    for key, value in flatten(stored):
        here = named.get(key, value)
        fixed = key != "total_steps" and not changes_no_result(key)
        if fixed and equivalent(key, value) != equivalent(key, here):
            raise CheckpointError(
                f"{checkpoint} belongs to another run: its {key} is {shown(value)}, but {path} has "
                f"{shown(here)}: delete this checkpoint, or move it out of this folder"
            )


def _resumed_config(
    cfg: DictConfig, typed: Sequence[str], checkpoint: Path, stored: Mapping[str, Any]
) -> TrainConfig:
    """Returns the configuration `stored` in `checkpoint`, with the changes that the user typed."""
    keys = {override.key_or_group for override in parse_overrides(typed)}
    # `runner=NAME` asks only for another runner, but the runner's YAML file also sets other keys.
    sections = {"runner.name" if key == "runner" else key for key in keys}
    try:
        load_train_config(stored)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        ConfigError,
    ) as error:
        raise CheckpointError(
            f"{checkpoint}: this version of htsrl cannot use the configuration in the checkpoint "
            f"({error}); resume with the version of htsrl that saved it"
        ) from error
    asked = resolved(cfg)
    config = load_train_config(merge(stored, asked, sections))
    _refuse_named_code(config, checkpoint, dict(flatten(asked)))
    return config


def _refuse_named_code(config: TrainConfig, checkpoint: Path, asked: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if only the checkpoint names a module, which could be anyone's code."""
    for source, module in named_modules(config).items():
        key, _, value = source.partition("=")
        if asked.get(key) != value:
            raise ConfigError(
                "resume",
                checkpoint,
                f"it names the module {module}, whose code would run: if you trust the checkpoint, "
                f"add {source}",
            )


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
