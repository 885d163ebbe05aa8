"""Advantages, returns and losses: pure functions of tensors.

Shapes: T steps, B columns, N rows of a micro-batch. Losses are *sums over rows* of terms that the
caller has already divided by the minibatch's size, so that micro-batches add up to the
minibatch's mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """What a slot says about rewards and values.

    Attributes:
        rewards: float32 [T, B].
        terminated, truncated: bool [T, B]; the episode ended with this step.
        values: float32 [T + 1, B]; row T values the observation after the last step.
        final_values: float32 [T, B]; value of a truncated episode's last observation.
    All values come from one policy, `final_values` from the one that collected the data.
    """

    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    values: Tensor
    final_values: Tensor


def next_values(rollout: Rollout) -> Tensor:
    """Value of what follows each step, [T, B].

    0 after a termination; after a truncation the final observation's value, not that of the next
    episode's first one.
    """
    following = torch.where(rollout.truncated, rollout.final_values, rollout.values[1:])
    return following.masked_fill(rollout.terminated, 0.0)


def gae(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates [T, B] (Schulman et al., 2016, Eq. 16)."""
    deltas = rollout.rewards + gamma * next_values(rollout) - rollout.values[:-1]
    continues = (~(rollout.terminated | rollout.truncated)).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    advantage = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        advantage = deltas[t] + gamma * gae_lambda * continues[t] * advantage
        advantages[t] = advantage
    return advantages


def bootstrapped_returns(rollout: Rollout, gamma: float) -> Tensor:
    """Discounted rewards to the end of the slot or the episode, bootstrapped there, [T, B]."""
    ends = rollout.terminated | rollout.truncated
    following = next_values(rollout)
    returns = torch.empty_like(rollout.rewards)
    value = rollout.values[-1]
    for t in range(len(returns) - 1, -1, -1):
        value = rollout.rewards[t] + gamma * torch.where(ends[t], following[t], value)
        returns[t] = value
    return returns


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


def ppo_loss(
    log_probs: Tensor,
    entropy: Tensor,
    values: Tensor,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    clip_coef: float,
    clip_value_loss: bool,
    entropy_coef: float,
    value_coef: float,
    num_rows: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate loss (Schulman et al., 2017, Eq. 7 and 9) of a micro-batch.

    Args:
        log_probs, entropy, values: of the policy that is being differentiated, [N].
        old_log_probs, old_values: of the policy before the update, [N].
        advantages, returns: constants, [N].
        clip_value_loss: the larger of the clipped and unclipped squared errors, as in the
            authors' implementation.
        num_rows: size of the minibatch that the sums are divided by.

    Returns:
        The loss, and its parts by name, among them the approximate KL divergence
        (Schulman, 2020: mean of ratio - 1 - log ratio) and the fraction of ratios clipped.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).sum() / num_rows
    errors = (values - returns) ** 2
    if clip_value_loss:
        clipped_values = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
        errors = torch.maximum(errors, (clipped_values - returns) ** 2)
    value_loss = 0.5 * errors.sum() / num_rows
    entropy_mean = entropy.sum() / num_rows
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
