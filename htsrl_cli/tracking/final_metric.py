"""The HTS-RL paper's two measures of a run: the final metric and the required time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

NUM_POLICIES = 10


class FinalMetric:
    """Mean score of the last ten evaluated policies, and when it first reached each target.

    Attributes:
        value: the mean over all games of the last ten policies; None before the first policy.
        reached: for each target, the env steps and seconds of training at which `value` first
            reached the target; None until then.
    """

    def __init__(self, targets: Sequence[float]) -> None:
        self.value: float | None = None
        self.reached: dict[float, tuple[int, float] | None] = dict.fromkeys(targets)
        self._means: deque[tuple[float, int]] = deque(maxlen=NUM_POLICIES)

    def add(self, env_steps: int, seconds: float, mean: float, episodes: int) -> None:
        """Adds the score of the next evaluated policy; updates `value` and `reached`.

        Args:
            env_steps: env steps for which the policy was trained.
            seconds: seconds for which the policy was trained.
            mean: mean score of the policy.
            episodes: number of games that the policy played.
        """
        self._means.append((mean, episodes))
        number = sum(count for _, count in self._means)
        self.value = sum(score * count for score, count in self._means) / number
        for target, when in self.reached.items():
            if when is None and self.value >= target:
                self.reached[target] = (env_steps, seconds)
