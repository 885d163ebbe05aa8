"""Policy gradients with one step of RMSprop for each rollout: the part that algorithms share.

In shapes, n is the number of rows of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from htsrl_cli.algorithms.base import OldPolicy, Prediction, Targets, WholeSlot
from htsrl_cli.algorithms.optimizers import eager
from htsrl_cli.algorithms.rmsprop import RmspropConfig


class PolicyGradient(WholeSlot):
    """The optimizer and loss of advantage actor-critic; subclasses compute the targets."""

    def __init__(self, config: RmspropConfig) -> None:
        self._config = config

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Builds RMSprop."""
        config = self._config
        return eager(torch.optim.RMSprop)(
            parameters,
            lr=config.learning_rate,
            alpha=config.rmsprop_alpha,
            eps=config.rmsprop_eps,
            foreach=True,
        )

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns `policy_gradient_loss`; see `Algorithm.loss`."""
        config = self._config
        return policy_gradient_loss(now, targets, config.entropy_coef, config.value_coef, num_rows)


def policy_gradient_loss(
    now: Prediction, targets: Targets, entropy_coef: float, value_coef: float, num_rows: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the advantage actor-critic loss (Mnih et al., 2016) of a micro-batch.

    Args:
        now: outputs of the differentiated policy, with gradients, float32 [n].
        targets: advantages, returns and importance weights, float32 [n]; treated as constants.
        num_rows: the number by which sums over rows are divided: that of the minibatch's rows for
            the mean loss, or 1 for the sum.

    Returns:
        The loss, and its parts by name: `policy`, `value` (squared error) and `entropy`.
    """
    weighted = targets.weights * targets.advantages
    policy_loss = -(now.log_probs * weighted).sum() / num_rows
    value_loss = ((targets.returns - now.values) ** 2).sum() / num_rows
    entropy_mean = now.entropy.sum() / num_rows
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy_mean
    return loss, {"policy": policy_loss, "value": value_loss, "entropy": entropy_mean}
