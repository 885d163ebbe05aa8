"""Advantages and returns of a slot: pure functions of tensors.

Shapes: T steps, B columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """The rewards, ends and values of a slot.

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
