"""What a run reports: lines of metrics, to TensorBoard and others, the summary, and progress.

A line covers a window of intervals. Everything in it outside `time/` is a function of what the
runner hands in, at barriers only, so that equal runs write equal lines, resumed or not. Evaluated
policies have lines of their own, in order, which stand where their scores came in.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from htsrl_cli.config.sections import EvaluationConfig, LogConfig
from htsrl_cli.durable import remove_leftovers, write_durably
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.final_metric import FinalMetric
from htsrl_cli.tracking.lines import LineFile
from htsrl_cli.tracking.progress import Status, open_display
from htsrl_cli.tracking.tensorboard import EventFiles, Plain
from htsrl_cli.tracking.trackers import MlflowTracker, Tracker, WandbTracker

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
EVALUATIONS_FOLDER = "evaluations"
RECENT_EPISODES = 100
RECENT_RETURN = f"episode/return_mean_{RECENT_EPISODES}"
EVAL_RETURN = "eval/return_mean"
FINAL_METRIC = "eval/final_metric"

Line = dict[str, float | None]
_NO_EVALUATION = EvaluationConfig()
# Names of an episode's figures in a line.
_FIGURES = ("return", "training_return", "length")


@dataclass
class _Window:
    """What happened since the last line.

    Attributes:
        sums: of each scalar, and in how many intervals it was reported.
        episodes: those that ended, in the order they were handed in.
    """

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)

    def add(self, scalars: Mapping[str, float], episodes: Sequence[Episode]) -> None:
        for name, value in scalars.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value), count + 1)
        self.episodes += episodes

    def means(self) -> Line:
        """Of the scalars, in order of name."""
        return {name: total / count for name, (total, count) in sorted(self.sums.items())}

    def episode_statistics(self) -> Line:
        """Of raw returns, training returns and lengths; None where no episode ended."""
        line: Line = {"episode/count": len(self.episodes)}
        for position, name in enumerate(_FIGURES):
            values = [episode[position] for episode in self.episodes]
            line[f"episode/{name}_mean"] = _mean(values)
            line[f"episode/{name}_min"] = min(values, default=None)
            line[f"episode/{name}_max"] = max(values, default=None)
        return line


class _Stopwatch:
    """Wall-clock figures: of this process, and of the run with all processes before it."""

    def __init__(self, clock: Callable[[], float], env_steps: int) -> None:
        self._clock = clock
        self._started = self._line_started = clock()
        self._first_steps = self._line_steps = env_steps
        self._stopped: float | None = None
        self._busy: dict[str, float] = {}
        self.seconds_before = 0.0

    def add(self, seconds: Mapping[str, float]) -> None:
        for name, value in seconds.items():
            self._busy[name] = self._busy.get(name, 0.0) + value

    def stop(self) -> None:
        """No more time passes."""
        self._stopped = self._clock()

    def seconds(self) -> float:
        """Of the whole run so far."""
        return self.seconds_before + self._now() - self._started

    def env_steps_per_second(self, env_steps: int) -> float:
        """Since this process started."""
        return _rate(env_steps - self._first_steps, self._now() - self._started)

    def line(self, env_steps: int) -> Line:
        """Figures since the last line; then the next window begins."""
        now = self._now()
        elapsed = now - self._line_started
        line: Line = {
            "time/seconds": self.seconds(),
            "time/env_steps_per_second": _rate(env_steps - self._line_steps, elapsed),
            "time/env_steps_per_second_since_start": self.env_steps_per_second(env_steps),
        }
        for name, value in sorted(self._busy.items()):
            line[f"time/{name}"] = _rate(value, elapsed)
        self._line_started, self._line_steps, self._busy = now, env_steps, {}
        return line

    def _now(self) -> float:
        return self._clock() if self._stopped is None else self._stopped


class RunLog:
    """Collects what happens at barriers and writes it out.

    `metrics.jsonl` and the event files are opened, and on a resume cut back, by the first call of
    `interval` or `finish`: a process that fails while starting changes nothing. Close the log, or
    use it as a context manager, so that the terminal is restored however the run ends.

    Args:
        run_dir: the run's folder.
        config: the interval between lines, and whether to write event files.
        hyperparameters: plain values, nested or not, for TensorBoard and other trackers.
        total_steps: env steps at the end of the run.
        env_steps: where this process begins; more than 0 after a resume.
        evaluation: whether policies are evaluated, and the scores to reach.
        clock: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LogConfig,
        hyperparameters: Mapping[str, object],
        total_steps: int,
        env_steps: int = 0,
        *,
        evaluation: EvaluationConfig = _NO_EVALUATION,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir = run_dir
        self._config = config
        self._hyperparameters = hyperparameters
        self._total_steps = total_steps
        self._env_steps = self._last_line = env_steps
        self._window = _Window()
        self._recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._num_episodes = 0
        self._stopwatch = _Stopwatch(clock, env_steps)
        self._outputs: _Outputs | None = None
        self._is_evaluated = evaluation.interval > 0
        self.final_metric = FinalMetric(evaluation.targets)
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
        """What runs are compared by; None before the first episode ended.

        The final metric where policies are evaluated, else the mean raw return of the last 100
        episodes.
        """
        return self.final_metric.value if self._is_evaluated else _mean(self._recent)

    @property
    def evaluated(self) -> Collection[int]:
        """Env steps of the policies whose scores have been logged, in order."""
        return self._evaluated.keys()

    def final_metric_at(self, env_steps: int) -> float | None:
        """The final metric of the policies up to `env_steps`; None without any."""
        values = [value for steps, value in self._evaluated.items() if steps <= env_steps]
        return values[-1] if values else None

    @property
    def num_episodes(self) -> int:
        """Episodes that ended since the run began."""
        return self._num_episodes

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training, with that of earlier processes up to the resume."""
        return self._stopwatch.seconds()

    def interval(
        self,
        env_steps: int,
        scalars: Mapping[str, float],
        episodes: Sequence[Episode],
        seconds: Mapping[str, float],
    ) -> None:
        """Takes in an interval, and writes a line where a multiple of `log.interval` is crossed.

        Args:
            env_steps: at the end of the interval.
            scalars: logged as means over the window; names may come and go.
            episodes: those that ended, in order of address.
            seconds: spent, by name, on average over the workers, or counts; logged divided by
                the window's wall-clock time, as fractions or rates.
        """
        self._env_steps = env_steps
        self._window.add(scalars, episodes)
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
        """Writes a line for an evaluated policy; policies come in order.

        Args:
            env_steps, seconds: of the training before it.
            episodes: that it played.
            animation: a GIF of one of them.

        Returns:
            Whether there was space for it; otherwise nothing has changed.
        """
        before = copy.deepcopy(self.final_metric)
        line: Line = {"env_steps": env_steps, "eval/episodes": len(episodes)}
        for position, name in enumerate(_FIGURES):
            line[f"eval/{name}_mean"] = _mean([episode[position] for episode in episodes])
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
        return True

    def _take_in(self, line: Mapping[str, Any]) -> None:
        env_steps = line["env_steps"]
        self.final_metric.add(
            env_steps, line["time/seconds"], line[EVAL_RETURN], line["eval/episodes"]
        )
        assert self.final_metric.value is not None
        self._evaluated[env_steps] = self.final_metric.value

    def finish(self) -> None:
        """Stops the clock and writes a line for what came after the last one, if anything.

        For the end of the training only: a run that stops early leaves its window to the resume.
        """
        self._stopwatch.stop()
        stored = [] if self._outputs else training_lines(self._run_dir)
        if any(line["env_steps"] == self._env_steps for line in stored):
            # The training had ended before the resume.
            self._last_line = self._env_steps
        if self._env_steps > self._last_line:
            self._write_line()

    def state(self) -> dict[str, Any]:
        """What a resume needs to write the same lines, JSON-able and exact."""
        return {
            "env_steps": self._env_steps,
            "last_line": self._last_line,
            "sums": dict(self._window.sums),
            "episodes": list(self._window.episodes),
            "recent": list(self._recent),
            "num_episodes": self._num_episodes,
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, before the first call of `interval`."""
        assert self._outputs is None, "the state comes before the first interval"
        self._env_steps, self._last_line = state["env_steps"], state["last_line"]
        sums = {name: (total, count) for name, (total, count) in state["sums"].items()}
        self._window = _Window(sums, [Episode(*figures) for figures in state["episodes"]])
        self._recent = deque(state["recent"], maxlen=RECENT_EPISODES)
        self._num_episodes = state["num_episodes"]
        self._stopwatch.seconds_before = state["seconds"]

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Writes `summary.json`, whole or not at all.

        Raises:
            OSError: it could not be written.
        """
        text = json.dumps(summary, indent=2) + "\n"
        path = self._run_dir / SUMMARY_FILE
        write_durably(path, lambda file: file.write(text.encode()))

    def close(self) -> None:
        """Closes the files and restores the terminal; what is pending is not written."""
        if self._outputs is not None:
            self._outputs.close(self._env_steps == self._total_steps)

    def _open(self) -> _Outputs:
        if self._outputs is None:
            # After the last line, not after the checkpoint: a line that `finish` wrote at the end
            # of a run must go when the run is extended.
            self._outputs = _Outputs(
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
        line |= {RECENT_RETURN: _mean(self._recent), "episode/total": self._num_episodes}
        line |= self._window.means()
        line |= self._stopwatch.line(self._env_steps)
        outputs.write(line)
        self._window = _Window()
        self._last_line = self._env_steps
        outputs.display.line(self._status())

    def _status(self) -> Status:
        rate = self._stopwatch.env_steps_per_second(self._env_steps)
        return Status(self._env_steps, self._total_steps, rate, _mean(self._recent))


class _Outputs:
    """Where lines go. What cannot be written is an error in the log, not the run's end."""

    def __init__(
        self,
        run_dir: Path,
        config: LogConfig,
        hyperparameters: Mapping[str, object],
        metric: str,
        last_line: int,
        evaluated: Collection[int],
    ) -> None:
        def keep(line: dict[str, Any]) -> bool:
            steps = line["env_steps"]
            return steps in evaluated if EVAL_RETURN in line else steps <= last_line

        remove_leftovers(run_dir)
        self._lines = LineFile(run_dir / METRICS_FILE, keep)
        values = dict(_plain(hyperparameters))
        self._trackers: dict[str, Tracker] = {}
        if config.tensorboard:
            events = EventFiles(run_dir, values, metric, last_line)
            # What TensorBoard hides for the sake of the lines that will be written again.
            for line in read_lines(run_dir):
                if line["env_steps"] > last_line:
                    events.write(line)
                    if EVAL_RETURN in line:
                        _write_film(events, run_dir, line["env_steps"])
            self._trackers["TensorBoard"] = events
        if config.wandb is not None:
            with self._reported("Weights & Biases"):
                tracker: Tracker = WandbTracker(config.wandb, run_dir, hyperparameters)
                self._trackers["Weights & Biases"] = tracker
        if config.mlflow is not None:
            with self._reported("MLflow"):
                self._trackers["MLflow"] = MlflowTracker(config.mlflow, run_dir, values)
        self.display = open_display(sys.stderr)

    def write(self, line: Line) -> bool:
        """Whether there was space for the line: otherwise it goes nowhere."""
        try:
            self._lines.append(line)
        except OSError as error:
            steps = line["env_steps"]
            logger.error("%s: %s; no line at %d env steps", METRICS_FILE, error.strerror, steps)
            return False
        for name, tracker in list(self._trackers.items()):
            with self._reported(name):
                tracker.write(line)
        return True

    def show(self, animation: bytes, env_steps: int) -> None:
        events = self._trackers.get("TensorBoard")
        if isinstance(events, EventFiles):
            with self._reported("TensorBoard"):
                events.write_animation(animation, env_steps)

    def close(self, is_complete: bool) -> None:
        self.display.close()
        self._lines.close()
        for name, tracker in list(self._trackers.items()):
            with self._reported(name):
                tracker.close(is_complete)

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Whatever a tracker raises is logged; none can be used after it has failed."""
        try:
            yield
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            logger.error("%s: %s; no more is written there", name, reason)
            self._trackers.pop(name, None)


def film_path(run_dir: Path, env_steps: int) -> Path:
    """The video of the first game of an evaluated policy."""
    return run_dir / EVALUATIONS_FOLDER / "videos" / f"policy_{env_steps:012d}.mp4"


def _write_film(events: EventFiles, run_dir: Path, env_steps: int) -> None:
    """Shows a policy's video again where there is one."""
    film = film_path(run_dir, env_steps)
    if film.exists():
        from htsrl_cli.evaluation.video import animation

        events.write_animation(animation(film), env_steps)


def read_lines(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, which may still grow; none where it is not there."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def training_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Those of `read_lines` that are of the training, not of an evaluated policy."""
    return [line for line in read_lines(run_dir) if EVAL_RETURN not in line]


def _plain(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Dotted names, and values of the types that trackers take."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, Plain) else str(value)


def _mean(values: Sequence[float] | deque[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
