"""Which policies of a run are evaluated and filmed, and what becomes of their scores."""

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
    """Hands policies over to the evaluator, logs their scores, and rates checkpoints by them.

    Args:
        env_steps: where this process begins.
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
        checkpoints.unrate()
        timeouts = Timeouts(config.env.step_timeout_s, config.actors.timeout_s)
        self._evaluator = Evaluator(run_dir, config.eval, env_steps, log.evaluated, timeouts)

    def barrier(self, env_steps: int, policy: Callable[[Mapping[str, Any]], Checkpoint]) -> None:
        """Hands over the policy published at this barrier where it is due; logs what is done.

        Args:
            policy: returns it, with some more entries of its document.
        """
        if self._plan.is_due(env_steps, self._config.interval):
            # Written while the learner goes on.
            meta = {
                "env_steps": env_steps,
                "seconds": self._log.seconds,
                "filmed": self._is_filmed(env_steps),
            }
            self._evaluator.submit(env_steps, policy(meta))
        self._log_scores()

    def flush(self) -> None:
        """Waits until all policies are on the disk, before a checkpoint that counts on them."""
        self._evaluator.flush()

    def finish(self, signals: StopSignals) -> None:
        """Waits at the end of the training for policies that are still to be played.

        Raises:
            RunError: scores could not be written.
        """
        told = 0
        while (number := len(self._evaluator.waiting)) and signals.signum is None:
            if number != told:
                logger.info("the training is complete; policies to evaluate: %d", number)
                told = number
            self._evaluator.wait()
            if not self._log_scores():
                raise RunError("scores could not be written; resume when there is space")

    def summary(self) -> dict[str, object]:
        """Returns what the summary says of the evaluations."""
        metric = self._log.final_metric
        reached = metric.reached.items()
        return {
            "evaluations": len(self._log.evaluated),
            "final_metric": metric.value,
            "env_steps_to": {f"{target:g}": when[0] if when else None for target, when in reached},
            "seconds_to": {f"{target:g}": when[1] if when else None for target, when in reached},
        }

    def close(self) -> None:
        """Ends the evaluator; what waits stays on the disk."""
        self._evaluator.close()

    def _is_filmed(self, env_steps: int) -> bool:
        """Returns True if `eval.video_interval` has passed a multiple since the policy before."""
        config, steps = self._config, self._plan.steps_per_interval
        if config.video_interval == 0:
            return False
        # That one came at the barrier that first reached the last multiple of `eval.interval`.
        multiple = (env_steps - steps) // config.interval * config.interval
        previous = -(-multiple // steps) * steps
        return env_steps // config.video_interval > previous // config.video_interval

    def _log_scores(self) -> bool:
        """Logs the scores that are in and rates checkpoints; returns False if space ran out."""
        played = self._evaluator.finished()
        num_logged = 0
        for done in played:
            if not self._log.evaluation(*done):
                break
            self._evaluator.forget_first()
            num_logged += 1
        waiting = self._evaluator.waiting
        for env_steps in self._checkpoints.unrated:
            if not waiting or env_steps < waiting[0]:
                self._checkpoints.rate(env_steps, self._log.final_metric_at(env_steps))
        return num_logged == len(played)
