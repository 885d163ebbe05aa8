"""The values of a run since its last line of metrics: scalars, ended games, and time spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.metric_names import EPISODE_FIGURES, Line


@dataclass
class Window:
    """The scalars and games of all rollouts since the last line.

    Attributes:
        sums: for each scalar, its sum and the number of rollouts that reported it.
        episodes: the games that ended, in the order in which they were added.
        lags: for each policy lag, the number of rows with it; empty unless `runner=async`.
    """

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    lags: dict[int, int] = field(default_factory=dict)

    def add(
        self, scalars: Mapping[str, float], episodes: Sequence[Episode], lags: Mapping[int, int]
    ) -> None:
        """Adds the scalars, games and policy lags of a rollout."""
        for name, value in scalars.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value), count + 1)
        self.episodes += episodes
        for lag, count in lags.items():
            self.lags[lag] = self.lags.get(lag, 0) + count

    def means(self) -> Line:
        """Returns each scalar's mean over the rollouts that reported it, sorted by name."""
        return {name: total / count for name, (total, count) in sorted(self.sums.items())}

    def episode_statistics(self) -> Line:
        """Returns the number of ended games, and statistics of their returns and lengths.

        The statistics are means, minima and maxima; they are None if no game has ended.
        """
        line: Line = {"episode/count": len(self.episodes)}
        for position, name in enumerate(EPISODE_FIGURES):
            values = [episode[position] for episode in self.episodes]
            line[f"episode/{name}_mean"] = mean(values)
            line[f"episode/{name}_min"] = min(values, default=None)
            line[f"episode/{name}_max"] = max(values, default=None)
        return line


class Stopwatch:
    """Wall-clock times and rates of this process and of the whole run.

    Args:
        clock: a monotonic clock that returns seconds.
        env_steps: env steps of the run when this process began.

    Attributes:
        seconds_before: seconds of training in earlier processes, up to the checkpoint from which
            this process resumed.
    """

    def __init__(self, clock: Callable[[], float], env_steps: int) -> None:
        self._clock = clock
        self._started = self._line_started = clock()
        self._first_steps = self._line_steps = env_steps
        self._stopped: float | None = None
        self._busy: dict[str, float] = {}
        self.seconds_before = 0.0

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds the amounts of a rollout (seconds or counts), by metric name without `time/`."""
        for name, value in seconds.items():
            self._busy[name] = self._busy.get(name, 0.0) + value

    def stop(self) -> None:
        """Stops the clock for good."""
        self._stopped = self._clock()

    def seconds(self) -> float:
        """Returns the seconds of training so far, including those in earlier processes."""
        return self.seconds_before + self._now() - self._started

    def env_steps_per_second(self, env_steps: int) -> float:
        """Returns the env steps per second since this process began; 0 if no time has passed."""
        return _rate(env_steps - self._first_steps, self._now() - self._started)

    def line(self, env_steps: int) -> Line:
        """Returns the `time/` values of a line; then starts to measure for the line after it.

        Each amount from `add` is divided by the seconds since the last line.
        """
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


def mean(values: Collection[float]) -> float | None:
    """Returns the mean; None if there are no values."""
    return sum(values) / len(values) if values else None


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
