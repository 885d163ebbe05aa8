"""REINFORCE with a learned baseline (Williams, 1992)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from htsrl_cli.algorithms.base import OldPolicy, Prediction, Targets, WholeSlot
from htsrl_cli.algorithms.optimizers import eager
from htsrl_cli.algorithms.returns import Rollout, bootstrapped_returns
from htsrl_example.reinforce.config import ReinforceConfig


class Reinforce(WholeSlot):
    """REINFORCE with a learned baseline: one optimizer step for each rollout.

    The gradient is computed at the parameters of the behavior policy.
    """

    def __init__(self, config: ReinforceConfig) -> None:
        self._config = config

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return eager(torch.optim.Adam)(parameters, lr=self._config.learning_rate, fused=True)

    def targets(self, rollout: Rollout) -> Targets:
        returns = bootstrapped_returns(rollout, self._config.gamma)
        return Targets(returns - rollout.values[:-1], returns, torch.ones_like(returns))

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        policy = -(now.log_probs * targets.advantages).sum() / num_rows
        value = (now.values - targets.returns).square().sum() / num_rows
        entropy = now.entropy.sum() / num_rows
        loss = policy + config.value_coef * value - config.entropy_coef * entropy
        return loss, {"policy": policy, "value": value, "entropy": entropy}
