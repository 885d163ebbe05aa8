"""A run: its rollouts, metrics, evaluations and checkpoints, whatever the runner."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.state import State, digest
from htsrl_cli.checkpoints.store import CheckpointStore
from htsrl_cli.config.identity import config_sha256
from htsrl_cli.config.plain import to_plain
from htsrl_cli.errors import RunError
from htsrl_cli.runners import provenance
from htsrl_cli.runners.evaluations import Evaluations
from htsrl_cli.runners.roles import Roles
from htsrl_cli.runners.rollout_digest import digest_of_run
from htsrl_cli.runners.snapshot import (
    cut_for_ranks,
    log_state,
    policy_checkpoint,
    restore,
    take,
)
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.run_log import RunLog
from htsrl_cli.workers.stopping import StopSignals

logger = logging.getLogger(__name__)


class Run(ABC):
    """The training loop: rollouts, metrics, evaluations and checkpoints.

    A subclass says how a rollout is made.

    Args:
        checkpoint: the checkpoint to continue from; None starts a new run.
        check_folder: see `htsrl_cli.runners.run.train`.
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
        self._rollout = 0
        self._logged: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._row_lags: dict[int, int] = {}
        self._episodes: list[Episode] = []
        # A stop signal that another rank has received.
        self._told: int | None = None
        if checkpoint is None:
            roles.group.scatter([None] * roles.group.size)
            roles.collector.reset()
        else:
            own = roles.group.scatter(cut_for_ranks(checkpoint, roles.group.size))
            self._rollout, self._is_exact = restore(roles, own)
        self._begin(checkpoint)
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
            self._saved_at = self._rollout

    @abstractmethod
    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Publishes the parameters and prepares rollout number `self._rollout`."""

    @abstractmethod
    def _run_rollout(self, check: Callable[[], None]) -> None:
        """Makes one rollout and the update that is due, and prepares the next rollout.

        Sets `_logged`, `_episodes`, `_seconds` and possibly `_row_lags` for the log, and increments
        `_rollout`.

        Args:
            check: a function to call often; any exception that it raises ends the run.
        """

    @abstractmethod
    def _parts(self) -> dict[str, State]:
        """Returns the states of the environments, the slot and the digest, for a checkpoint."""

    @abstractmethod
    def _non_finite(self) -> list[str]:
        """Returns the names of values that are not finite; see `snapshot.non_finite`."""

    @abstractmethod
    def _chains(self) -> list[str]:
        """Returns the digests of all shards, extended by the slot that waits for the learner."""

    def _dismiss(self) -> None:  # noqa: B027 - most runs have no other ranks
        """Tells the other ranks that the run has ended."""

    def signum(self, signals: StopSignals) -> int | None:
        """Returns the first stop signal that any rank has received."""
        return self._told if signals.signum is None else signals.signum

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

        while not self.is_complete and self.signum(signals) is None:
            self._run_rollout(check)
            self._check_folder()
            self._checkpoints.prove()
            self._log_rollout()
            if self._evaluations:
                policy = partial(policy_checkpoint, self._roles)
                self._evaluations.barrier(self._env_steps, policy)
            if self._plan.is_due(self._env_steps, self._config.checkpoint.interval):
                self._save_checkpoint()
        if self._saved_at != self._rollout:
            self._save_checkpoint()
        chains = self._chains()
        # The other ranks need not wait for the last evaluations.
        self._dismiss()
        if self.is_complete:
            # The log finishes after the checkpoint is saved. If the run is later resumed with a
            # higher `total_steps`, the run then writes the same lines as if it had not ended here.
            self.log.finish()
            if self._evaluations:
                self._evaluations.finish(signals, self._check_folder)
        self._end(digest_of_run(chains))

    def _log_rollout(self) -> None:
        self.log.rollout(
            self._env_steps, self._logged, self._episodes, self._seconds, self._row_lags
        )

    def _save_checkpoint(self) -> None:
        """Saves a checkpoint, unless it would hold values from which no update can be made."""
        if names := self._non_finite():
            logger.error(
                "the checkpoint at %s env steps is not saved, because it would hold values that "
                "are not finite: %s",
                f"{self._env_steps:,}",
                ", ".join(names),
            )
            return
        checkpoint = take(self._roles, self.log, self._rollout, self._is_exact, self._parts())
        if self._evaluations:
            self._evaluations.flush()
        self._check_folder()
        is_saved = self._checkpoints.save(
            self._env_steps,
            self.log.metric,
            checkpoint,
            is_final=self._evaluations is None,
            # After the last rollout there is no update that could prove it.
            is_proven=not self._plan.lag or self.is_complete,
        )
        if is_saved:
            self._saved_at = self._rollout

    def _end(self, rollouts_sha256: str | None) -> None:
        """Writes the summary, then checks that the last checkpoint is on disk.

        Raises:
            RunError: the summary or the last checkpoint could not be written.
        """
        self._check_folder()
        try:
            self.log.write_summary(self._summary(rollouts_sha256))
        except OSError as error:
            raise RunError(
                f"summary.json could not be written: {error.strerror}; fix the cause, then resume"
            ) from error
        if self._saved_at != self._rollout:
            raise RunError(
                "the last checkpoint could not be saved: fix the cause (see the error above), then "
                "resume from the checkpoint before it"
            )

    def _summary(self, rollouts_sha256: str | None) -> dict[str, object]:
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
            "rollouts_sha256": rollouts_sha256,
            "config_sha256": config_sha256(self._config),
            "versions": provenance.versions(self._config),
            "machine": provenance.machine(self._config),
        }
