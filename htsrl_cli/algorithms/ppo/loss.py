"""The loss of proximal policy optimization, a pure function of tensors.

In shapes, n is the number of rows of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from htsrl_cli.algorithms.base import OldPolicy, Prediction, Targets


def ppo_loss(
    now: Prediction,
    old: OldPolicy,
    targets: Targets,
    clip_coef: float,
    clip_value_loss: bool,
    entropy_coef: float,
    value_coef: float,
    num_rows: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the clipped surrogate loss (Schulman et al., 2017, Eq. 7 and 9) of a micro-batch.

    Args:
        now: outputs of the current policy, with gradients, float32 [n].
        old: outputs of the old policy, float32 [n].
        targets: advantages, returns and importance weights, float32 [n]; treated as constants. The
            weights multiply the rows of the policy part (Hilton et al., 2021, Eq. 3).
        clip_coef: range of the clipping; the probability ratio is clipped to 1 ± `clip_coef`.
        clip_value_loss: True to use the larger of two squared errors, as in the authors'
            implementation: the error of the value, and the error of the value clipped to
            `old.values` ± `clip_coef`.
        num_rows: number of rows of the minibatch, by which sums over rows are divided.

    Returns:
        The loss, and its parts by name: `policy`, `value` (half the mean squared error), `entropy`,
        `kl` (approximate KL divergence, the mean of ratio - 1 - log ratio; Schulman, 2020) and
        `clip_fraction` (fraction of ratios outside the clipping range).
    """
    advantages, returns, weights = targets
    log_ratio = now.log_probs - old.log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    policy_loss = -(weights * surrogate).sum() / num_rows
    errors = (now.values - returns) ** 2
    if clip_value_loss:
        clipped_values = old.values + (now.values - old.values).clamp(-clip_coef, clip_coef)
        errors = torch.maximum(errors, (clipped_values - returns) ** 2)
    value_loss = 0.5 * errors.sum() / num_rows
    entropy_mean = now.entropy.sum() / num_rows
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy_mean
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio).sum() / num_rows
        clip_fraction = ((ratio - 1).abs() > clip_coef).to(ratio.dtype).sum() / num_rows
    return loss, {
        "policy": policy_loss,
        "value": value_loss,
        "entropy": entropy_mean,
        "kl": kl,
        "clip_fraction": clip_fraction,
    }
