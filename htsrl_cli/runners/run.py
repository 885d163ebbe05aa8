"""Training of a configuration in a folder: it builds the roles, chooses the loop and runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.config.sections import AsyncRunnerConfig, TrainConfig
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.ranks.group import joined
from htsrl_cli.runners import farewell
from htsrl_cli.runners.async_run import AsyncRun
from htsrl_cli.runners.barrier_run import BarrierRun
from htsrl_cli.runners.folder import usable
from htsrl_cli.runners.follow import lead
from htsrl_cli.runners.roles import Roles
from htsrl_cli.runners.start_check import check_computation
from htsrl_cli.runners.wiring import connect
from htsrl_cli.workers.stopping import StopSignals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        metric: the score by which runs are compared; see `RunLog.metric`.
        signum: number of the first stop signal; None if none arrived.
        is_complete: True if the run has made all its env steps. This may also be so after a signal,
            if it arrived during the last rollout or later.
    """

    metric: float | None
    signum: int | None
    is_complete: bool


def train(
    config: TrainConfig,
    run_dir: Path,
    checkpoint: Path | None = None,
    check_folder: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains in `run_dir`, from the start or from a checkpoint file; returns the result.

    Args:
        check_folder: a function that raises `RunError` if this run must not write to `run_dir` any
            more; see `HeldFolder.check`. It is called before every write.

    Raises:
        ConfigError: the environment, a device or the network is not available, or there is too
            little memory.
        CheckpointError: the checkpoint does not fit the environment or the network.
        RunError: a worker failed, a loss or gradient is not finite, or a result could not be
            written. A resume continues from the last checkpoint, if there is one.
        HtsrlError: an evaluation failed.
    """
    set_up_torch()
    stored = None if checkpoint is None else load_checkpoint(checkpoint)
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        lead(group, config)
        roles = connect(config, stored, stack, group)
        check_computation(roles)
        _introduce(roles, run_dir)
        kind = AsyncRun if isinstance(config.runner, AsyncRunnerConfig) else BarrierRun
        stack.enter_context(usable(run_dir))
        run = kind(roles, run_dir, stored, check_folder, stack)
        if stored is not None:
            logger.info(
                "resumed from %s, at %s env steps", checkpoint, f"{stored.meta['env_steps']:,}"
            )
            if run.is_complete:
                logger.info("the run is complete: there is nothing to train")
        # Signals are caught only from here on: before the first rollout there is nothing to save,
        # so a signal may end the process at once.
        with StopSignals(config.runner.stop_grace_s) as signals:
            run.advance(signals)
    for line in farewell.lines(config, run_dir):
        logger.info("%s", line)
    return Outcome(run.log.metric, run.signum(signals), run.is_complete)


def _introduce(roles: Roles, run_dir: Path) -> None:
    """Logs what is trained, and with which workers."""
    config, spec = roles.config, roles.spec
    num_parameters = sum(p.numel() for p in roles.learner.policies.parameters())
    logger.info("run folder: %s", run_dir)
    logger.info(
        "env.%s=%s: %d environments, observations %s%s, %s actions%s",
        config.env.label_key,
        getattr(config.env, config.env.label_key),
        config.actors.num_envs,
        spec.obs_dtype,
        list(spec.obs_shape),
        spec.actions.kind,
        list(spec.actions.sizes) or [spec.actions.num_dims],
    )
    logger.info(
        "algo %s, network %s: %s parameters, seed %d",
        config.algo.name,
        config.network.name,
        f"{num_parameters:,}",
        config.seed,
    )
    logger.info(
        "%s (%s), %d learner threads (%s)",
        "executors and actors in this process"
        if config.runner.schedule.inline
        else f"{config.actors.num_executors} executors, {config.actors.num_actors} actors",
        config.actors.precision,
        config.learner.num_threads,
        config.learner.precision,
    )
