"""The loss of advantage actor-critic: a pure function of tensors.

Shapes: N rows of a micro-batch.
"""

from __future__ import annotations

from torch import Tensor


def a2c_loss(
    log_probs: Tensor,
    entropy: Tensor,
    values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    entropy_coef: float,
    value_coef: float,
    num_rows: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The advantage actor-critic loss (Mnih et al., 2016) of a micro-batch.

    Args:
        log_probs, entropy, values: of the policy that is being differentiated, [N].
        advantages, returns: constants, [N].
        num_rows: size of the minibatch that the sums are divided by.

    Returns:
        The loss, and its parts by name; the value loss is the mean squared error.
    """
    policy_loss = -(log_probs * advantages).sum() / num_rows
    value_loss = ((returns - values) ** 2).sum() / num_rows
    entropy_mean = entropy.sum() / num_rows
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy_mean
    return loss, {"policy": policy_loss, "value": value_loss, "entropy": entropy_mean}
