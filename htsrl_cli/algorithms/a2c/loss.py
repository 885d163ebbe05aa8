"""The loss of advantage actor-critic, a pure function of tensors.

In shapes, n is the number of rows of a micro-batch.
"""

from __future__ import annotations

from torch import Tensor

from htsrl_cli.algorithms.base import Prediction, Targets


def a2c_loss(
    now: Prediction, targets: Targets, entropy_coef: float, value_coef: float, num_rows: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the advantage actor-critic loss (Mnih et al., 2016) of a micro-batch.

    Args:
        now: outputs of the behavior policy, with gradients, float32 [n].
        targets: advantages and returns, float32 [n]; treated as constants.
        num_rows: number of rows of the minibatch, by which sums over rows are divided.

    Returns:
        The loss, and its parts by name: `policy`, `value` (mean squared error) and `entropy`.
    """
    policy_loss = -(now.log_probs * targets.advantages).sum() / num_rows
    value_loss = ((targets.returns - now.values) ** 2).sum() / num_rows
    entropy_mean = now.entropy.sum() / num_rows
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy_mean
    return loss, {"policy": policy_loss, "value": value_loss, "entropy": entropy_mean}
