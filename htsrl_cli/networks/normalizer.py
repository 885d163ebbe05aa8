"""Running moments of observations and returns, as buffers of a policy.

Buffers belong to a version of the parameters: they are published to actors, saved, evaluated and
hashed with it, and do not change before the next version. The learner updates them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from htsrl_cli.storage.memory import Array

# As in Stable-Baselines3's VecNormalize.
_CLIP = 10.0
_EPS = 1e-8


class RunningMoments(nn.Module):
    """Mean and variance of all arrays seen so far; before the first array, 0 and 1.

    Args:
        shape: shape of an array.

    Attributes:
        count: float64 []; number of arrays.
        mean: float64 [*shape]; their mean.
        deviations: float64 [*shape]; their summed squared deviations from the mean.
    """

    count: Tensor
    mean: Tensor
    deviations: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("deviations", torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def merge(self, count: int, means: Array, deviations: Array) -> None:
        """Adds the moments of several columns, in order (Chan et al., 1979).

        Args:
            count: number of arrays of each column.
            means, deviations: float64 [columns, *shape].
        """
        buffers = (self.count, self.mean, self.deviations)
        total, mean, summed = (buffer.cpu().numpy() for buffer in buffers)
        for its_mean, its_deviations in zip(means, deviations, strict=True):
            before, total = total, total + count
            difference = its_mean - mean
            mean = mean + difference * (count / total)
            summed = summed + its_deviations + difference**2 * (before * count / total)
        for buffer, value in zip(buffers, (total, mean, summed), strict=True):
            buffer.copy_(torch.from_numpy(np.asarray(value)))

    def factor(self) -> Tensor:
        """Returns 1 / standard deviation, float32 [*shape]."""
        seen = self.count > 0
        variance = torch.where(seen, self.deviations / self.count.clamp(min=1), 1.0)
        return (variance + _EPS).rsqrt().float()


class ObsNormalizer(RunningMoments):
    """Normalization of float observations to mean 0 and variance 1, clipped to ±10."""

    def forward(self, obs: Tensor) -> Tensor:
        """Returns normalized observations, float32 [N, *shape]."""
        return ((obs - self.mean.float()) * self.factor()).clamp(-_CLIP, _CLIP)


class RewardNormalizer(RunningMoments):
    """Division of rewards by the standard deviation of discounted returns, clipped to ±10."""

    def __init__(self) -> None:
        super().__init__(())

    def forward(self, rewards: Tensor) -> Tensor:
        """Returns normalized rewards, float32, of the same shape."""
        return (rewards * self.factor()).clamp(-_CLIP, _CLIP)
