"""Advantage actor-critic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.a2c.config import A2cConfig
from htsrl_cli.algorithms.a2c.loss import a2c_loss
from htsrl_cli.algorithms.base import Indices, OldPolicy, Prediction, Targets
from htsrl_cli.algorithms.returns import Rollout, bootstrapped_returns


class A2c:
    """Advantage actor-critic: one full-batch step a slot, returns to the slot's end."""

    at_behaviour = True
    reevaluates = False
    anneals_loss = False

    def __init__(self, config: A2cConfig) -> None:
        self._config = config

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        config = self._config
        return torch.optim.RMSprop(
            parameters,
            lr=config.learning_rate,
            alpha=config.rmsprop_alpha,
            eps=config.rmsprop_eps,
            foreach=True,
        )

    def targets(self, rollout: Rollout) -> Targets:
        returns = bootstrapped_returns(rollout, self._config.gamma)
        return Targets(returns - rollout.values[:-1], returns)

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        yield np.arange(num_rows)

    def weigh(self, advantages: Tensor) -> Tensor:
        return advantages

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        return a2c_loss(*now, *targets, config.entropy_coef, config.value_coef, num_rows)
