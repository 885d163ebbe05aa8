"""Checks of a command before Hydra runs and writes its first file.

The check of each verb returns additional overrides to pass to Hydra.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.cli import tuned
from htsrl_cli.cli.compose import (
    Composer,
    to_bench_config,
    to_eval_config,
    to_train_config,
    typed_words,
)
from htsrl_cli.cli.folders import naming, output_dir
from htsrl_cli.cli.job import Job, holds_run, plan_job
from htsrl_cli.config.auto import AUTO
from htsrl_cli.config.checks import check_combinations
from htsrl_cli.config.kinds import NetworkConfig, OwnNetworkConfig
from htsrl_cli.config.sections import RunnerConfig, TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.errors import ConfigError, UsageError
from htsrl_cli.runners.replay import load_schedule
from htsrl_cli.workers.stopping import LAUNCHER_VARIABLE

logger = logging.getLogger(__name__)

# Number of bytes for a test write: more than Hydra's configuration files in a run folder take.
_ROOM = 64 * 1024

# Groups that a single run would ignore.
_OF_SWEEPS = ("hparams_search", "sweeper", "launcher")

Check = Callable[[Composer, Sequence[str], bool], list[str]]


def check_train(composer: Composer, overrides: Sequence[str], multirun: bool) -> list[str]:
    """Checks every job of `htsrl train`; tests environments, packages and the output folder.

    Each distinct environment is built and closed again. The output folder is created, and a
    temporary file is written to it.

    Raises:
        UsageError: one of the jobs cannot run as configured.
    """
    if multirun:
        return _check_sweep(composer, overrides)
    cfg = composer.job(overrides)
    for group in _OF_SWEEPS:
        if option := cfg.hydra.runtime.choices.get(group):
            raise ConfigError(group, option, "works only in a sweep: add -m")
    folder = output_dir(cfg, multirun=False)
    fixed = _is_fixed(cfg, "hydra.run.dir")
    if cfg.resume == AUTO and not fixed:
        raise ConfigError("resume", AUTO, "needs the run's folder: hydra.run.dir=RUN_DIR")
    job = _plan(cfg, folder)
    if fixed and job.run_dir.resolve() != folder.resolve():
        remedy = f"a resume writes to {job.run_dir}: leave this key out"
        raise ConfigError("hydra.run.dir", folder, remedy)
    check_environments([job.config])
    check_extras([job.config])
    load_schedule(job.config)
    claim_folder("hydra.run.dir", job.run_dir)
    added = [_assign("hydra.run.dir", job.run_dir)]
    if job.checkpoint:
        # A resume must not overwrite the folder `.hydra/` that the first start of the run wrote.
        return [*added, "hydra.output_subdir=null"]
    return [*added, *tuned.words(cfg)]


def check_eval(composer: Composer, overrides: Sequence[str], multirun: bool) -> list[str]:
    """Checks the configuration of every job of `htsrl eval`, and that its checkpoint exists.

    Raises:
        UsageError: one of the jobs cannot run as configured.
    """
    for cfg in _jobs(composer, overrides, multirun):
        find_checkpoint(Path(to_eval_config(cfg).checkpoint))
    return []


def check_bench(composer: Composer, overrides: Sequence[str], multirun: bool) -> list[str]:
    """Checks every job of `htsrl bench`, and tests the environments and the output folder.

    The output folder of a multirun is not tested.

    Raises:
        UsageError: one of the jobs cannot run as configured.
    """
    jobs = _jobs(composer, overrides, multirun)
    configs = [to_train_config(cfg) for cfg in jobs]
    for cfg, config in zip(jobs, configs, strict=True):
        for runner in to_bench_config(cfg).runners:
            check_combinations(replace(config, runner=_runner(runner, overrides)))
    check_environments(configs)
    if multirun:
        return [naming(overrides)]
    folder = output_dir(jobs[0], multirun=False)
    claim_folder("hydra.run.dir", folder)
    return [_assign("hydra.run.dir", folder), *tuned.words(jobs[0])]


def _runner(name: str, overrides: Sequence[str]) -> RunnerConfig:
    """Returns the section `runner` of another runner, with the keys that the user has set."""
    own = [word for word in overrides if word.startswith("runner.")]
    return to_train_config(Composer("train").job([f"runner={name}", *own])).runner


CHECKS: dict[str, Check] = {"train": check_train, "eval": check_eval, "bench": check_bench}


def check(verb: str, composer: Composer, overrides: Sequence[str], multirun: bool) -> list[str]:
    """Checks every job of a verb; returns additional overrides to pass to Hydra.

    Raises:
        UsageError: one of the jobs cannot run as configured. If a value in a YAML file of the user
            is wrong, the error names the line.
    """
    try:
        return CHECKS[verb](composer, overrides, multirun)
    except ConfigError as error:
        raise composer.located(error, overrides) from error
    except RuntimeError as error:
        # `Path.resolve` raises this; only its text tells it from other errors.
        if not str(error).startswith("Symlink loop"):
            raise
        raise UsageError(f"hydra.run.dir: {error}: choose another folder") from error


def _jobs(composer: Composer, overrides: Sequence[str], multirun: bool) -> list[DictConfig]:
    if multirun:
        return composer.sweep(overrides)[1]
    return [composer.job(overrides)]


def check_environments(configs: Iterable[TrainConfig]) -> None:
    """Builds the environments and checks that the networks fit them.

    What occurs in several configurations is checked only once.
    Environments for which `EnvConfig.is_tried` is False are skipped.

    Raises:
        UsageError: an environment or network does not exist or is not supported, its package is
            missing, the network does not accept the environment's observations, or its actions
            cannot be squashed.
        EnvError: an environment's own code raises an exception.
    """
    from htsrl_cli.envs.registry import make_env
    from htsrl_cli.envs.squash import squasher

    distinct = {repr((c.env, c.network, c.algo.squash)): c for c in configs}
    for config in distinct.values():
        if not config.env.is_tried:
            continue
        with closing(make_env(config.env, 0)) as env:
            squasher(env.env_spec.actions, config.algo)
            _check_network(config.network, env.env_spec)


def _check_network(network: NetworkConfig, spec: EnvSpec) -> None:
    """Checks that a network accepts the observations; builds the network if it is user-defined."""
    network.check(spec.obs_shape)
    if isinstance(network, OwnNetworkConfig):
        # Only a user-defined network needs torch here.
        import torch

        from htsrl_cli.networks.registry import build_policy

        build_policy(spec, network, "fp32", torch.device("cpu"))


def check_extras(configs: Iterable[TrainConfig]) -> None:
    """Checks that the packages for trackers and videos are installed and that filming works.

    Filming is tested with one frame of each distinct environment that is to be filmed.

    Raises:
        ConfigError: a package is missing, or an environment to be filmed cannot be rendered.
    """
    from htsrl_cli.tracking import trackers

    filmed: dict[str, TrainConfig] = {}
    for config in configs:
        trackers.check_packages(config.log)
        if config.eval.video_interval:
            filmed[repr(config.env)] = config
    if not filmed:
        return
    from htsrl_cli.envs.registry import make_env
    from htsrl_cli.evaluation import video

    for config in filmed.values():
        key, value = "eval.video_interval", config.eval.video_interval
        video.check_packages(key, value)
        try:
            with closing(make_env(config.env, 0, config.env.usual_renderer)) as env:
                picture = video.check_picture(env, key, value)
                env.reset(seed=0)
                picture.render()
        except ConfigError as error:
            raise ConfigError(key, value, error.remedy) from error
        except Exception as error:
            raise ConfigError(key, value, f"cannot film this environment: {error}") from error


def claim_folder(key: str, folder: Path) -> None:
    """Creates `folder`, the value of the key `key`, and tests that files can be written to it.

    Raises:
        ConfigError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        remedy = f"cannot write to this folder ({cause}): choose another folder"
        raise ConfigError(key, folder, remedy) from error


def _check_sweep(composer: Composer, overrides: Sequence[str]) -> list[str]:
    names = naming(overrides)
    master, jobs = composer.sweep([*overrides, names])
    fixed = _is_fixed(master, "hydra.sweep.dir")
    plans = []
    for cfg in jobs:
        if cfg.resume == AUTO and not fixed:
            raise ConfigError("resume", AUTO, "needs the sweep's folder: hydra.sweep.dir=DIR")
        if cfg.resume not in (None, AUTO):
            remedy = "to resume a multirun, give resume=auto hydra.sweep.dir=DIR"
            raise ConfigError("resume", cfg.resume, remedy)
        plans.append(_plan(cfg, output_dir(cfg, multirun=True)))
    check_environments([job.config for job in plans])
    check_extras([job.config for job in plans])
    folder = Path(str(master.hydra.sweep.dir))
    _refuse_other_names(folder, plans)
    # Jobs that run on this machine end with this process.
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    claim_folder("hydra.sweep.dir", folder)
    return [_assign("hydra.sweep.dir", folder), names]


def _refuse_other_names(folder: Path, plans: Sequence[Job]) -> None:
    """Raises `ConfigError` if `folder` holds a run with a name that earlier versions gave to jobs.

    These names are a number, or a number and overrides with `=`. A resume would not find the run,
    and would begin it anew.
    """
    planned = {job.run_dir.resolve() for job in plans}
    for path in sorted(folder.glob("[0-9]*")):
        is_earlier = path.name.isdigit() or "=" in path.name
        if is_earlier and path.resolve() not in planned and holds_run(path):
            remedy = (
                f"an earlier version of htsrl named the job's folder {path.name}: resume the sweep "
                "with that version; if all names are numbers, hydra.sweep.subdir='${hydra.job.num}'"
                " also resumes it"
            )
            raise ConfigError("hydra.sweep.dir", folder, remedy)


def _plan(cfg: DictConfig, folder: Path) -> Job:
    return plan_job(cfg, typed_words(cfg.hydra, "task"), folder, Path.cwd())


def _is_fixed(cfg: DictConfig, key: str) -> bool:
    """Returns True if the value of `key`, a folder name, does not depend on the start time."""
    section, _, name = key.rpartition(".")
    names = OmegaConf.to_container(OmegaConf.select(cfg, section), resolve=False)
    return isinstance(names, dict) and "${now:" not in str(names[name])


def _assign(key: str, folder: Path) -> str:
    """Returns an override that sets `key` to `folder`, quoted so that Hydra can parse any name."""
    return f"{key}={QuotedString(str(folder), Quote.single).with_quotes()}"
