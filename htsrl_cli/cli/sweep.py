"""Failures that end a whole sweep, as one-line errors."""

from __future__ import annotations

import sys
import traceback
from concurrent.futures.process import BrokenProcessPool

from hydra.core.hydra_config import HydraConfig

from htsrl_cli.errors import RunError


def failure(error: Exception) -> RunError | None:
    """Returns the error to report if Hydra raised `error` for a known reason; otherwise None.

    The reasons are a failed sweep and a log file that cannot be opened. Call this function in the
    process that ran the sweep, before Hydra runs anything else.
    """
    if isinstance(error, ValueError) and isinstance(error.__cause__, OSError):
        cause = error.__cause__
        return RunError(
            f"the run folder cannot be used: {cause.filename}: {cause.strerror}: fix the cause, "
            "then repeat the command"
        )
    if isinstance(error, BrokenProcessPool):
        folder = HydraConfig.get().sweep.dir
        return RunError(
            f"a job's process died, which ended the sweep {folder}: to resume the sweep, run "
            f"the same command with resume=auto hydra.sweep.dir={folder}"
        )
    if _has_no_best_trial(error):
        return RunError(
            f"no trial of {HydraConfig.get().sweep.dir} gave a metric: each of them failed, or was "
            "complete before an episode ended (raise total_steps); see the warnings above, and "
            "train.log in the trials' folders"
        )
    return None


def _has_no_best_trial(error: Exception) -> bool:
    """Returns True if Optuna raised `error` because no trial of the search gave a metric.

    Optuna's study is the local variable `self` of a function in the traceback. The result is True
    if all trials of the study have ended and none of them has a value.
    """
    if "optuna" not in sys.modules:
        return False
    from optuna.study import Study
    from optuna.trial import TrialState

    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    states = [t.state for study in callers if isinstance(study, Study) for t in study.trials]
    ended = all(state.is_finished() for state in states)
    return bool(states) and ended and TrialState.COMPLETE not in states
