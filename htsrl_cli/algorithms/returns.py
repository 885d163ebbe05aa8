"""Advantages and returns of a slot, as pure functions of tensors.

In shapes, T is the number of env steps of each environment in a rollout, and B is the number of
columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """Rewards, episode ends and values of a slot.

    All `values` come from the same policy: the policy that the update starts from if it
    reevaluates the slot (see `algo.correction`), otherwise the behavior policy. `final_values`
    always come from the behavior policy.

    Attributes:
        rewards: float32 [T, B]; the training rewards.
        terminated: bool [T, B]; True where an env step terminated an episode.
        truncated: bool [T, B]; True where an env step truncated an episode.
        values: float32 [T + 1, B]; value of the observation before each env step and, at index T,
            of the observation after the last env step.
        final_values: float32 [T, B]; where `truncated` is True, the value of the episode's last
            observation; elsewhere 0.
        ratios: float32 [T, B]; probability of the action under the policy that the update starts
            from, divided by its probability under the behavior policy. Exactly 1 if these are the
            same policy, or if the slot is not reevaluated.
    """

    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    values: Tensor
    final_values: Tensor
    ratios: Tensor


def next_values(rollout: Rollout) -> Tensor:
    """Returns the value of the observation after each env step, float32 [T, B].

    The value is 0 after a termination. After a truncation it is the value of the episode's last
    observation, not that of the next episode's first observation.
    """
    following = torch.where(rollout.truncated, rollout.final_values, rollout.values[1:])
    return following.masked_fill(rollout.terminated, 0.0)


def _deltas(rollout: Rollout, gamma: float) -> tuple[Tensor, Tensor]:
    """Returns temporal differences, and 1 where the episode continues, else 0; each [T, B]."""
    deltas = rollout.rewards + gamma * next_values(rollout) - rollout.values[:-1]
    return deltas, (~(rollout.terminated | rollout.truncated)).to(deltas.dtype)


def gae(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """Computes generalized advantage estimates, float32 [T, B] (Schulman et al., 2016, Eq. 16)."""
    deltas, continues = _deltas(rollout, gamma)
    advantages = torch.empty_like(deltas)
    advantage = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        advantage = deltas[t] + gamma * gae_lambda * continues[t] * advantage
        advantages[t] = advantage
    return advantages


def vtrace(
    rollout: Rollout, gamma: float, gae_lambda: float, max_rho: float, max_c: float
) -> tuple[Tensor, Tensor]:
    """Computes V-trace advantages and returns, each float32 [T, B] (Espeholt et al., 2018, Eq. 1).

    With ratios of 1, both are the same, bit for bit, as with `gae`.

    Args:
        gae_lambda: factor of the weights c, as in the paper's Remark 2.
        max_rho: largest weight of a temporal difference.
        max_c: largest weight, before the factor `gae_lambda`, with which a correction is passed on
            to the env step before.

    Returns:
        The advantages and the returns. A return is the value plus the correction of its env step.
        An advantage does not contain its own action's weight, because the loss multiplies by it.
    """
    deltas, continues = _deltas(rollout, gamma)
    rhos, cs = rollout.ratios.clamp(max=max_rho), rollout.ratios.clamp(max=max_c)
    advantages, corrections = torch.empty_like(deltas), torch.empty_like(deltas)
    correction = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        following = gamma * gae_lambda * continues[t] * correction
        advantages[t] = deltas[t] + following
        correction = rhos[t] * deltas[t] + cs[t] * following
        corrections[t] = correction
    return advantages, corrections + rollout.values[:-1]


def bootstrapped_returns(rollout: Rollout, gamma: float) -> Tensor:
    """Computes discounted returns, float32 [T, B].

    A return sums the discounted rewards up to the end of the episode or of the slot, whichever
    comes first. If the episode has not terminated by then, the return also includes the discounted
    value of the last observation.
    """
    ends = rollout.terminated | rollout.truncated
    following = next_values(rollout)
    returns = torch.empty_like(rollout.rewards)
    value = rollout.values[-1]
    for t in range(len(returns) - 1, -1, -1):
        value = rollout.rewards[t] + gamma * torch.where(ends[t], following[t], value)
        returns[t] = value
    return returns
