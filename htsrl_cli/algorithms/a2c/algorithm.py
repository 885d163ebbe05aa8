"""A2C as an `Algorithm`: its optimizer, targets and loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from htsrl_cli.algorithms.a2c.config import A2cConfig
from htsrl_cli.algorithms.a2c.loss import a2c_loss
from htsrl_cli.algorithms.base import OldPolicy, Prediction, Targets, WholeSlot
from htsrl_cli.algorithms.optimizers import eager
from htsrl_cli.algorithms.returns import Rollout, bootstrapped_returns


class A2c(WholeSlot):
    """Advantage actor-critic (Mnih et al., 2016) with one optimizer step for each rollout."""

    def __init__(self, config: A2cConfig) -> None:
        self._config = config

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        config = self._config
        return eager(torch.optim.RMSprop)(
            parameters,
            lr=config.learning_rate,
            alpha=config.rmsprop_alpha,
            eps=config.rmsprop_eps,
            foreach=True,
        )

    def targets(self, rollout: Rollout) -> Targets:
        returns = bootstrapped_returns(rollout, self._config.gamma)
        return Targets(returns - rollout.values[:-1], returns, torch.ones_like(returns))

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        return a2c_loss(now, targets, config.entropy_coef, config.value_coef, num_rows)
