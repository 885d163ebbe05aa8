"""A run: the loop over rollouts and the barrier between them.

    rollout       0        1            2            3
    collect     D0(θ0)   D1(θ1=θ0)    D2(θ2)       D3(θ3)
    learn         -      D0 → θ2      D1 → θ3      D2 → θ4

Rollout j fills slot Dj, using version θj of the parameters. The runners `hts` and `serial` follow
this schedule, with the same result: `hts` learns while it collects, and `serial` first learns and
then collects, in the main process. The runner `sync` learns from each rollout before it collects
the next rollout. Everything else happens at the barriers: slots are swapped, parameters are
published, metrics and checkpoints are written, and the first stop signal takes effect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint
from htsrl_cli.checkpoints.state import digest
from htsrl_cli.checkpoints.store import CheckpointStore
from htsrl_cli.config.identity import config_sha256
from htsrl_cli.config.plain import to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import NonFiniteError, RunError
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.runners import farewell, provenance
from htsrl_cli.runners.evaluations import Evaluations
from htsrl_cli.runners.folder import usable
from htsrl_cli.runners.load_meter import LoadMeter
from htsrl_cli.runners.roles import Roles
from htsrl_cli.runners.snapshot import (
    log_state,
    non_finite,
    policy_checkpoint,
    restore,
    take,
    unlearned_slot,
)
from htsrl_cli.runners.wiring import connect
from htsrl_cli.seeding import action_noise
from htsrl_cli.storage.memory import Array
from htsrl_cli.tracking.run_log import RunLog
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
        roles = connect(config, stored, stack)
        _introduce(roles, run_dir)
        stack.enter_context(usable(run_dir))
        run = Run(roles, run_dir, stored, check_folder, stack)
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
    return Outcome(run.log.metric, signals.signum, run.is_complete)


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


class Run:
    """The training loop, from one barrier to the next.

    Args:
        checkpoint: the checkpoint to continue from; None starts a new run.
        check_folder: see `train`.
        stack: the exit stack that closes what the run opens.

    Attributes:
        log: the log of the run's metrics.
    """

    def __init__(
        self,
        roles: Roles,
        run_dir: Path,
        checkpoint: Checkpoint | None,
        check_folder: Callable[[], None],
        stack: ExitStack,
    ) -> None:
        config = roles.config
        self._roles = roles
        self._config = config
        self._plan = roles.plan
        self._barrier_began = time.monotonic()
        self._is_exact = True
        if checkpoint is None:
            roles.collector.reset()
            rollout = 0
        else:
            rollout, self._is_exact = restore(roles, checkpoint)
        self._write_parameters(rollout)
        self._open_rollout(rollout, roles.collector.obs)
        self._check_folder = check_folder
        check_folder()
        self._checkpoints = CheckpointStore(run_dir, config.checkpoint.keep)
        self._checkpoints.discard_after(self._env_steps)
        self.log = RunLog(
            run_dir,
            config.log,
            to_plain(config),
            self._plan.num_rollouts * self._plan.steps_per_rollout,
            self._env_steps,
            evaluation=config.eval,
        )
        self._evaluations: Evaluations | None = None
        if config.eval.interval:
            self._evaluations = Evaluations(
                config, self._plan, run_dir, self.log, self._checkpoints, self._env_steps
            )
            stack.enter_context(closing(self._evaluations))
        # Closing the log restores the terminal. The log is entered last, so that it closes first: a
        # second signal may end the process while the other parts close.
        stack.enter_context(self.log)
        self._saved_at = -1
        if checkpoint is None:
            self._save_checkpoint()
        else:
            self.log.load_state(log_state(checkpoint))
            self._saved_at = rollout

    @property
    def _env_steps(self) -> int:
        return self._rollout * self._plan.steps_per_rollout

    @property
    def is_complete(self) -> bool:
        """True if all rollouts have been made."""
        return self._rollout == self._plan.num_rollouts

    def advance(self, signals: StopSignals) -> None:
        """Trains to the end, or to the first barrier after a stop signal.

        Raises:
            RunError: a worker failed, a loss or gradient is not finite, the run's folder was
                replaced, or the last scores, the summary or the last checkpoint could not be
                written.
            HtsrlError: an evaluation failed.
        """

        def check() -> None:
            self._roles.collector.check()
            signals.check()

        while not self.is_complete and signals.signum is None:
            self._run_rollout(check)
            self._check_folder()
            self._log_rollout()
            if self._evaluations:
                policy = partial(policy_checkpoint, self._roles)
                self._evaluations.barrier(self._env_steps, policy)
            if self._plan.is_due(self._env_steps, self._config.checkpoint.interval):
                self._save_checkpoint()
        if self._saved_at != self._rollout:
            self._save_checkpoint()
        if self.is_complete:
            # The log finishes after the checkpoint is saved. If the run is later resumed with a
            # higher `total_steps`, the run then writes the same lines as if it had not ended here.
            self.log.finish()
            if self._evaluations:
                self._evaluations.finish(signals, self._check_folder)
        self._end()

    def _run_rollout(self, check: Callable[[], None]) -> None:
        """Collects one rollout, makes the update that is due, and opens the next rollout's slot.

        With policy lag, the update learns from the previous rollout, so rollout 0 makes no update.
        Without policy lag, the update learns from this rollout.
        """
        collector, ring = self._roles.collector, self._roles.ring
        watch = LoadMeter(collector.board, collector.num_steppers)
        barrier_s = watch.started_at - self._barrier_began
        self._logged: dict[str, float] = {}
        collector.begin()
        if self._plan.lag and self._rollout > 0:
            self._learn(self._rollout - 1, check)
        if self._plan.lag:
            self._write_parameters(self._rollout + 1)
        learner_s = watch.seconds()
        collector.finish(check)
        if not self._plan.lag:
            learner_s = -watch.seconds()
            self._learn(self._rollout, check)
            self._write_parameters(self._rollout + 1)
            learner_s += watch.seconds()
        self._barrier_began = time.monotonic()
        self._seconds = watch.shares(learner_s) | {"barrier": barrier_s}
        self._open_rollout(self._rollout + 1, ring.slot(self._rollout).obs[-1])

    def _learn(self, rollout: int, check: Callable[[], None]) -> None:
        """Makes one update from the full slot of rollout number `rollout`."""
        roles, slot = self._roles, self._roles.ring.slot(rollout)
        slot.check_filled()
        versions = np.unique(slot.versions)
        lag = roles.store.version - int(versions[0])
        if len(versions) > 1 or lag != self._plan.lag:
            raise AssertionError(
                f"the slot was collected with parameter versions {versions}, but an update of "
                f"version {roles.store.version} needs a slot collected with version "
                f"{roles.store.version - self._plan.lag} only"
            )
        digest = roles.rollouts.begin(slot)
        try:
            logged = roles.learner.update(slot, check, roles.ring.activations(rollout))
        except NonFiniteError:
            # A checkpoint of this barrier holds the same slot, so every resume would end here.
            if self._plan.lag and self._saved_at == self._rollout:
                self._checkpoints.discard(self._env_steps)
            raise
        self._logged = logged | {"learner/lag": float(lag)}
        roles.rollouts.add(digest)

    def _write_parameters(self, version: int) -> None:
        """Writes the learner's parameters to the store, as version `version`."""
        self._roles.learner.write_parameters(self._roles.store.half(version))

    def _open_rollout(self, rollout: int, obs: Array) -> None:
        """Publishes parameter version `rollout` and opens the slot of rollout number `rollout`.

        Args:
            obs: the rollout's first observations, one for each column.
        """
        self._rollout = rollout
        ring = self._roles.ring
        self._roles.store.publish(rollout)
        shape, kind = ring.slot(rollout).noise.shape, self._roles.spec.actions.kind
        ring.begin(rollout, obs, action_noise(self._config.seed, rollout, shape, kind))

    def _log_rollout(self) -> None:
        episodes = list(self._roles.ring.slot(self._rollout - 1).episodes())
        self.log.rollout(self._env_steps, self._logged, episodes, self._seconds)

    def _save_checkpoint(self) -> None:
        """Saves a checkpoint, unless it would hold values from which no update can be made."""
        if names := non_finite(self._roles, self._rollout):
            logger.error(
                "the checkpoint at %s env steps is not saved, because it would hold values that "
                "are not finite: %s",
                f"{self._env_steps:,}",
                ", ".join(names),
            )
            return
        checkpoint = take(self._roles, self.log, self._rollout, self._is_exact)
        if self._evaluations:
            self._evaluations.flush()
        self._check_folder()
        is_final = self._evaluations is None
        if self._checkpoints.save(self._env_steps, self.log.metric, checkpoint, is_final):
            self._saved_at = self._rollout

    def _end(self) -> None:
        """Writes the summary, then checks that the last checkpoint is on disk.

        Raises:
            RunError: the summary or the last checkpoint could not be written.
        """
        self._check_folder()
        try:
            self.log.write_summary(self._summary())
        except OSError as error:
            raise RunError(
                f"summary.json could not be written: {error.strerror}; fix the cause, then resume"
            ) from error
        if self._saved_at != self._rollout:
            raise RunError(
                "the last checkpoint could not be saved: fix the cause (see the error above), then "
                "resume from the checkpoint before it"
            )

    def _summary(self) -> dict[str, object]:
        learner, best = self._roles.learner, self._checkpoints.best
        return {
            "env_steps": self._env_steps,
            "seconds": self.log.seconds,
            "env_steps_per_second": self._env_steps / self.log.seconds,
            "updates": learner.num_updates_done,
            "episodes": self.log.num_episodes,
            "metric": self.log.metric,
            "training_return": self.log.training_return,
            "best_checkpoint": best and best[0].name,
            "best_metric": best and best[1],
            "is_exact": self._is_exact,
            **(self._evaluations.summary() if self._evaluations else {}),
            "params_sha256": digest(learner.parameters()),
            "optimizer_sha256": digest(learner.optimizer_state()),
            "rollouts_sha256": self._roles.rollouts.with_slot(
                unlearned_slot(self._roles, self._rollout)
            ),
            "config_sha256": config_sha256(self._config),
            "versions": provenance.versions(self._config),
            "machine": provenance.machine(self._config),
        }
