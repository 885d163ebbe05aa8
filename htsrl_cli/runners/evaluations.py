"""Evaluation during a run: submission of policies, and logging of their scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.store import CheckpointStore
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import RunError
from htsrl_cli.evaluation.evaluator import Evaluator, Timeouts
from htsrl_cli.tracking.run_log import RunLog
from htsrl_cli.workers.stopping import StopSignals

logger = logging.getLogger(__name__)


class Evaluations:
    """The link between a run and its evaluator.

    The link submits policies at barriers, logs their scores, and sets the metrics of checkpoints
    from the scores.

    Args:
        env_steps: env steps at which this process starts: 0 for a new run, those of the checkpoint
            for a resumed run.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: RunPlan,
        run_dir: Path,
        log: RunLog,
        checkpoints: CheckpointStore,
        env_steps: int,
    ) -> None:
        self._config = config.eval
        self._plan = plan
        self._log = log
        self._checkpoints = checkpoints
        checkpoints.forget_metrics()
        timeouts = Timeouts(config.env.step_timeout_s, config.actors.timeout_s)
        self._evaluator = Evaluator(run_dir, config.eval, env_steps, log.evaluated, timeouts)

    def barrier(self, env_steps: int, policy: Callable[[Mapping[str, Any]], Checkpoint]) -> None:
        """Submits the published policy if an evaluation is due, and logs scores that have arrived.

        Args:
            env_steps: env steps of the run at this barrier.
            policy: a function that returns a checkpoint of the policy just published. Its argument
                is a mapping of entries for the checkpoint's `meta`.

        Raises:
            HtsrlError: an evaluation failed.
        """
        if self._plan.is_due(env_steps, self._config.interval):
            # A thread of the evaluator saves the policy while the learner runs.
            meta = {
                "env_steps": env_steps,
                "seconds": self._log.seconds,
                "filmed": self._is_filmed(env_steps),
            }
            self._evaluator.submit(env_steps, policy(meta))
        self._log_scores()

    def flush(self) -> None:
        """Blocks until no policy is being written; logs an error if a policy could not be written.

        Call it before saving a checkpoint: a run that resumes from the checkpoint does not submit
        earlier policies again.
        """
        self._evaluator.flush()

    def finish(self, signals: StopSignals, check_folder: Callable[[], None]) -> None:
        """Blocks until every submitted policy has been scored, or a stop signal arrives.

        Args:
            check_folder: a function that is called before every write; see `runners.run.train`.

        Raises:
            RunError: the scores could not be written.
            HtsrlError: an evaluation failed.
        """
        told = 0
        while (number := len(self._evaluator.waiting)) and signals.signum is None:
            if number != told:
                logger.info("training is complete; policies left to evaluate: %d", number)
                told = number
            self._evaluator.wait()
            check_folder()
            if not self._log_scores():
                raise RunError(
                    "the evaluation scores could not be written: free up disk space, then resume"
                )

    def summary(self) -> dict[str, object]:
        """Returns the entries of `summary.json` that describe the evaluations."""
        metric = self._log.final_metric
        reached = metric.reached.items()
        return {
            "evaluations": len(self._log.evaluated),
            "final_metric": metric.value,
            "env_steps_to": {f"{target:g}": when[0] if when else None for target, when in reached},
            "seconds_to": {f"{target:g}": when[1] if when else None for target, when in reached},
        }

    def close(self) -> None:
        """Stops the evaluator; policies without a score stay on disk for a resume."""
        self._evaluator.close()

    def _is_filmed(self, env_steps: int) -> bool:
        """Returns True if the policy at `env_steps` is to be filmed.

        For each multiple of `eval.video_interval`, the first policy submitted at or after it is
        filmed.
        """
        config, steps = self._config, self._plan.steps_per_rollout
        if config.video_interval == 0:
            return False
        # The previous policy was submitted at the first barrier at or after the preceding multiple
        # of `eval.interval`.
        multiple = (env_steps - steps) // config.interval * config.interval
        previous = -(-multiple // steps) * steps
        return env_steps // config.video_interval > previous // config.video_interval

    def _log_scores(self) -> bool:
        """Logs scores that have arrived, and sets the metrics of checkpoints.

        A checkpoint's metric is set once every policy up to its env steps has been scored.

        Returns:
            False if the scores could not be written.
        """
        played = self._evaluator.finished()
        num_logged = 0
        for done in played:
            if not self._log.evaluation(*done):
                break
            self._evaluator.forget_first()
            num_logged += 1
        waiting = self._evaluator.waiting
        for env_steps in self._checkpoints.waiting:
            if not waiting or env_steps < waiting[0]:
                self._checkpoints.set_metric(env_steps, self._log.final_metric_at(env_steps))
        return num_logged == len(played)
