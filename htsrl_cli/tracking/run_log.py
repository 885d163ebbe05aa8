"""The log of a run: turns the results of rollouts and updates into lines of metrics.

A line covers all rollouts since the previous line. Apart from the `time/` metrics, its content
depends only on what the runner reports at barriers. Runs with the same configuration and seed
therefore write the same values, whether or not they were interrupted and resumed. Each evaluated
policy has a line of its own, which is written when its scores arrive.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from htsrl_cli.checkpoints.state import State
from htsrl_cli.config.sections import LogConfig, PeriodicEvalConfig
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking import summary as summary_file
from htsrl_cli.tracking.final_metric import FinalMetric
from htsrl_cli.tracking.lines import read_lines, training_lines
from htsrl_cli.tracking.metric_names import (
    EPISODE_FIGURES,
    EVAL_RETURN,
    FINAL_METRIC,
    RECENT_EPISODES,
    RECENT_RETURN,
    Line,
)
from htsrl_cli.tracking.outputs import Outputs
from htsrl_cli.tracking.progress import Status
from htsrl_cli.tracking.window import Stopwatch, Window, mean

logger = logging.getLogger(__name__)


class RunLog:
    """The log of a run's metrics, which collects them at barriers and writes them as lines.

    The first call of `rollout` or `evaluation` opens `metrics.jsonl` and the event files of
    TensorBoard. If there was no such call, `finish` opens them if it has a line to write. On a
    resume, opening the files also removes the lines that will be written again. A process that
    fails during start-up therefore changes none of these files. Close the log, or use it as a
    context manager, so that the terminal is restored even if the run fails.

    Args:
        run_dir: the run's folder.
        config: env steps between lines, and the trackers to write to.
        hyperparameters: plain values, possibly nested, for TensorBoard and other trackers.
        total_steps: env steps at the end of the run.
        env_steps: env steps at which this process begins; more than 0 after a resume.
        evaluation: settings of the evaluation during training, including the target scores. If it
            is None or its interval is 0, no policies are evaluated.
        clock: a monotonic clock that returns seconds.

    Attributes:
        final_metric: the final metric of the evaluated policies, and the targets it has reached.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LogConfig,
        hyperparameters: Mapping[str, object],
        total_steps: int,
        env_steps: int = 0,
        *,
        evaluation: PeriodicEvalConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir = run_dir
        self._config = config
        self._hyperparameters = hyperparameters
        self._total_steps = total_steps
        self._env_steps = self._last_line = env_steps
        self._window = Window()
        self._recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._num_episodes = 0
        self._stopwatch = Stopwatch(clock, env_steps)
        self._outputs: Outputs | None = None
        self._is_evaluated = evaluation is not None and evaluation.interval > 0
        self.final_metric = FinalMetric(evaluation.targets if evaluation else ())
        self._evaluated: dict[int, float] = {}
        for line in read_lines(run_dir):
            if EVAL_RETURN in line and line["env_steps"] <= env_steps:
                self._take_in(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def metric(self) -> float | None:
        """The score by which runs are compared; None until there is a score.

        If policies are evaluated, it is the final metric of the evaluated policies. Otherwise, it
        is the mean raw return of the last 100 games.
        """
        return self.final_metric.value if self._is_evaluated else self.training_return

    @property
    def training_return(self) -> float | None:
        """Mean raw return of the last 100 training episodes; None until an episode ends."""
        return mean(self._recent)

    @property
    def evaluated(self) -> Collection[int]:
        """The env steps for which each evaluated policy was trained, in the order of the lines."""
        return self._evaluated.keys()

    def final_metric_at(self, env_steps: int) -> float | None:
        """Returns the final metric as of the last evaluated policy at or before `env_steps`.

        None if there is no such policy.
        """
        values = [value for steps, value in self._evaluated.items() if steps <= env_steps]
        return values[-1] if values else None

    @property
    def num_episodes(self) -> int:
        """Number of games that have ended since the run began."""
        return self._num_episodes

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, including those before the resumed checkpoint."""
        return self._stopwatch.seconds()

    def rollout(
        self,
        env_steps: int,
        scalars: Mapping[str, float],
        episodes: Sequence[Episode],
        seconds: Mapping[str, float],
        lags: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Adds a rollout and shows the progress; writes a line if a line is due.

        A line is due if a multiple of `log.interval` was crossed since the previous line.

        Args:
            env_steps: env steps of the run at the end of the rollout.
            scalars: values by name; a rollout may lack some names. A line has the mean of each
                value over the rollouts since the previous line.
            episodes: the games that ended in the rollout, in order of env step and column.
            seconds: seconds spent (means over the workers) or counts, by name. Both are divided by
                the wall-clock time since the previous line, and logged as fractions or rates.
            lags: for each policy lag, the number of the update's rows with it. TensorBoard shows
                them as a histogram.
        """
        self._env_steps = env_steps
        self._window.add(scalars, episodes, lags)
        self._recent.extend(episode.raw_return for episode in episodes)
        self._num_episodes += len(episodes)
        self._stopwatch.add(seconds)
        if env_steps // self._config.interval > self._last_line // self._config.interval:
            self._write_line()
        self._open().display.barrier(self._status())

    def evaluation(
        self,
        env_steps: int,
        seconds: float,
        episodes: Sequence[Episode],
        animation: bytes | None = None,
    ) -> bool:
        """Writes the line and GIF of an evaluated policy; call it in the order of `env_steps`.

        Args:
            env_steps: env steps for which the policy was trained.
            seconds: seconds for which the policy was trained.
            episodes: the games that the policy played.
            animation: a GIF of one of these games; None if there is no GIF.

        Returns:
            False if the line could not be written; the log is then unchanged.
        """
        before = copy.deepcopy(self.final_metric)
        line: Line = {"env_steps": env_steps, "eval/episodes": len(episodes)}
        for position, name in enumerate(EPISODE_FIGURES):
            line[f"eval/{name}_mean"] = mean([episode[position] for episode in episodes])
        scores = [episode.raw_return for episode in episodes]
        line |= {"eval/return_min": min(scores), "eval/return_max": max(scores)}
        line["time/seconds"] = seconds
        self._take_in(line)
        line[FINAL_METRIC] = self.final_metric.value
        for target, reached in self.final_metric.reached.items():
            line[f"eval/env_steps_to_{target:g}"] = reached[0] if reached else None
            line[f"time/seconds_to_{target:g}"] = reached[1] if reached else None
        if not self._open().write(line):
            self.final_metric = before
            del self._evaluated[env_steps]
            return False
        if animation is not None:
            self._open().show(animation, env_steps)
        logger.info(
            "evaluated at %s env steps: score %.4g (%g to %g), final metric %.4g",
            f"{env_steps:,}",
            line[EVAL_RETURN],
            line["eval/return_min"],
            line["eval/return_max"],
            line[FINAL_METRIC],
        )
        return True

    def _take_in(self, line: Mapping[str, Any]) -> None:
        # A file has null where a score was not finite.
        env_steps, score = line["env_steps"], line[EVAL_RETURN]
        score = math.nan if score is None else score
        self.final_metric.add(env_steps, line["time/seconds"], score, line["eval/episodes"])
        assert self.final_metric.value is not None
        self._evaluated[env_steps] = self.final_metric.value

    def finish(self) -> None:
        """Stops the clock, and writes a last line if there were rollouts since the previous line.

        Call it only at the end of training. If a run stops early, the rollouts since its last line
        go into the next line of the resumed run.
        """
        self._stopwatch.stop()
        stored = [] if self._outputs else training_lines(self._run_dir)
        if any(line["env_steps"] == self._env_steps for line in stored):
            # The training had already ended before the resume.
            self._last_line = self._env_steps
        if self._env_steps > self._last_line:
            self._write_line()

    def state(self) -> State:
        """Returns what a resumed run needs to write the same lines as an uninterrupted run."""
        values = {
            "env_steps": self._env_steps,
            "last_line": self._last_line,
            "sums": dict(self._window.sums),
            "episodes": list(self._window.episodes),
            "lags": list(self._window.lags.items()),
            "recent": list(self._recent),
            "num_episodes": self._num_episodes,
            "seconds": self.seconds,
        }
        return State({}, values)

    def load_state(self, state: State) -> None:
        """Continues from a saved state; call it before `rollout`, `evaluation` and `finish`."""
        assert self._outputs is None, "load the state before the first rollout"
        values = state.values
        self._env_steps, self._last_line = values["env_steps"], values["last_line"]
        sums = {name: (total, count) for name, (total, count) in values["sums"].items()}
        episodes = [Episode(*figures) for figures in values["episodes"]]
        # Checkpoints of early versions of htsrl have no lags.
        self._window = Window(sums, episodes, dict(values.get("lags", ())))
        self._recent = deque(values["recent"], maxlen=RECENT_EPISODES)
        self._num_episodes = values["num_episodes"]
        self._stopwatch.seconds_before = values["seconds"]

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Writes `summary.json` atomically.

        Raises:
            OSError: the file cannot be written.
        """
        summary_file.write_summary(self._run_dir, summary)

    def close(self) -> None:
        """Closes files and trackers, and restores the terminal; writes no further line."""
        if self._outputs is not None:
            self._outputs.close(self._env_steps == self._total_steps)

    def _open(self) -> Outputs:
        if self._outputs is None:
            # `metrics.jsonl` is cut back to the last line before the checkpoint, not to the env
            # steps of the checkpoint: if a run is extended, the line that `finish` wrote at its
            # end must be removed.
            self._outputs = Outputs(
                self._run_dir,
                self._config,
                self._hyperparameters,
                FINAL_METRIC if self._is_evaluated else RECENT_RETURN,
                self._last_line,
                self._evaluated,
            )
        return self._outputs

    def _write_line(self) -> None:
        outputs = self._open()
        line: Line = {"env_steps": self._env_steps}
        line |= self._window.episode_statistics()
        line |= {RECENT_RETURN: mean(self._recent), "episode/total": self._num_episodes}
        line |= self._window.means()
        line |= self._stopwatch.line(self._env_steps)
        if outputs.write(line) and self._window.lags:
            outputs.show_lags(self._window.lags, self._env_steps)
        self._window = Window()
        self._last_line = self._env_steps
        logger.info("%s", self._status())

    def _status(self) -> Status:
        rate = self._stopwatch.env_steps_per_second(self._env_steps)
        return Status(
            self._env_steps,
            self._total_steps,
            rate,
            mean(self._recent),
            self.seconds,
            self.final_metric.value,
        )
