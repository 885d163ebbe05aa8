"""The running statistics with which policies normalize observations and rewards.

The learner adds each slot that it has learned from, so that the statistics of version j + 1 of the
parameters cover the slots that the parameters themselves have seen. Every column is summed alone,
and columns are merged in the order of their addresses, so neither workers nor ranks change a bit.

In shapes, T is the number of env steps of each environment in a rollout, and B is the number of
columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from htsrl_cli.checkpoints.state import State
from htsrl_cli.networks.normalizer import RunningMoments
from htsrl_cli.ranks.group import Group
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.slot import Slot

# Name of the array of the discounted returns so far, in the state of the learner.
RETURNS = "discounted_returns"


class Statistics:
    """The update of the policies' normalizers; does nothing for policies that have none.

    Args:
        policies: the `ActorCritic` networks; with K policies, policy k counts columns k, k + K, and
            so on.
        gamma: discount factor of the returns whose variance normalizes rewards.
        group: the ranks that train the run.
    """

    def __init__(self, policies: nn.ModuleList, gamma: float, group: Group) -> None:
        self._policies: list[Any] = list(policies)
        self._gamma = gamma
        self._group = group
        # The discounted return of each column of all ranks so far, float64 [B].
        self._returns: Array | None = None

    @torch.no_grad()
    def normalized(self, rewards: Tensor) -> Tensor:
        """Returns rewards [T, B] as the policies' values count them, normalized if they do."""
        if self._policies[0].reward_normalizer is None:
            return rewards
        number, found = len(self._policies), torch.empty_like(rewards)
        for k, policy in enumerate(self._policies):
            own = rewards[:, k::number].to(policy.reward_normalizer.count.device)
            found[:, k::number] = policy.reward_normalizer(own).cpu()
        return found

    def add(self, slot: Slot) -> None:
        """Adds the observations and rewards of a slot to the policies' normalizers."""
        if self._policies[0].obs_normalizer is not None:
            self._merge("obs_normalizer", self._of_all_ranks(*_moments(slot.obs[:-1])))
        if self._policies[0].reward_normalizer is not None:
            self._merge("reward_normalizer", _moments(self._discounted(slot)))

    def state(self) -> State:
        """Returns the discounted returns so far, if rewards are normalized."""
        return State({} if self._returns is None else {RETURNS: self._returns}, {})

    def load_state(self, state: State) -> None:
        """Restores a state that `state` returned; the policies' own state has the normalizers."""
        self._returns = state.arrays.get(RETURNS)

    def _merge(self, name: str, moments: tuple[int, Array, Array]) -> None:
        count, means, deviations = moments
        for k, policy in enumerate(self._policies):
            own = slice(k, None, len(self._policies))
            normalizer: RunningMoments = getattr(policy, name)
            normalizer.merge(count, means[own], deviations[own])

    def _of_all_ranks(
        self, count: int, means: Array, deviations: Array
    ) -> tuple[int, Array, Array]:
        """Returns the moments of the columns of all ranks, given those of this rank."""
        both = torch.from_numpy(np.moveaxis(np.stack([means, deviations]), 1, -1))
        gathered: Array = np.moveaxis(self._group.columns(both).numpy(), -1, 1)
        return count, gathered[0], gathered[1]

    def _discounted(self, slot: Slot) -> Array:
        """Returns the discounted returns of all columns at each env step, float64 [T, B]."""
        local = np.stack([slot.rewards.astype(np.float64), slot.terminated | slot.truncated])
        rewards, ended = self._group.columns(torch.from_numpy(local)).numpy()
        current = np.zeros(rewards.shape[1]) if self._returns is None else self._returns
        returns = np.empty_like(rewards)
        for t, reward in enumerate(rewards):
            returns[t] = current * self._gamma + reward
            current = np.where(ended[t] > 0, 0.0, returns[t])
        self._returns = current
        found: Array = returns
        return found


def _moments(values: Array) -> tuple[int, Array, Array]:
    """Returns T, and each column's mean and summed squared deviations, float64 [B, ...].

    A column is summed alone: otherwise, the order of a sum could depend on the number of columns.

    Args:
        values: [T, B, ...].
    """
    means, deviations = [], []
    for c in range(values.shape[1]):
        column = np.ascontiguousarray(values[:, c], np.float64)
        means.append(column.mean(axis=0))
        deviations.append(((column - means[-1]) ** 2).sum(axis=0))
    return len(values), np.array(means), np.array(deviations)
