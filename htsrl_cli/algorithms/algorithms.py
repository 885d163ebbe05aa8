"""What distinguishes one algorithm from another: targets, minibatches, loss and optimizer.

Shapes: N = T * B rows of a slot, n rows of a micro-batch, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from htsrl_cli.algorithms.losses import Rollout, a2c_loss, bootstrapped_returns, gae, ppo_loss
from htsrl_cli.config.sections import A2cConfig, AlgoConfig, PpoConfig
from htsrl_cli.seeding import minibatch_orders

Indices = npt.NDArray[np.int64]


class OldPolicy(NamedTuple):
    """What the policy before the update says about rows: log-probabilities and values, float32 [n].

    With `Algorithm.reevaluates` it is the one that the update starts from, else the one that
    collected the data.
    """

    log_probs: Tensor
    values: Tensor


class Prediction(NamedTuple):
    """What the differentiated policy says about rows, float32 [n]."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


class Targets(NamedTuple):
    """What an update aims at, float32: [T, B] or, for rows, [n]."""

    advantages: Tensor
    returns: Tensor


class Algorithm(Protocol):
    """An actor-critic algorithm.

    Attributes:
        at_behaviour: the gradient is taken at the parameters that collected the data (A2C) and
            not where the update has come to (PPO).
        reevaluates: where the data are one update older than the parameters, log-probabilities
            and values are computed anew with the parameters that the update starts from.
        anneals_loss: the loss changes from update to update (a clipping range that is annealed).
    """

    at_behaviour: bool
    reevaluates: bool
    anneals_loss: bool

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer: ...

    def learning_rate(self, remaining: float) -> float:
        """The rate when a fraction `remaining` of all updates is still to come."""

    def targets(self, rollout: Rollout) -> Targets:
        """Advantages and returns, [T, B]."""

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        """The rows of every optimizer step of update number `update`."""

    def weigh(self, advantages: Tensor) -> Tensor:
        """A minibatch's advantages as they enter the loss."""

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the loss of a minibatch of `num_rows`, and what to log."""


class A2c:
    """Advantage actor-critic: one full-batch step a slot, returns to the slot's end."""

    at_behaviour = True
    reevaluates = False
    anneals_loss = False

    def __init__(self, config: A2cConfig) -> None:
        self._config = config

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        config = self._config
        return torch.optim.RMSprop(
            parameters,
            lr=config.learning_rate,
            alpha=config.rmsprop_alpha,
            eps=config.rmsprop_eps,
            foreach=True,
        )

    def learning_rate(self, remaining: float) -> float:
        config = self._config
        return config.learning_rate * (remaining if config.anneal_learning_rate else 1.0)

    def targets(self, rollout: Rollout) -> Targets:
        returns = bootstrapped_returns(rollout, self._config.gamma)
        return Targets(returns - rollout.values[:-1], returns)

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        yield np.arange(num_rows)

    def weigh(self, advantages: Tensor) -> Tensor:
        return advantages

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        return a2c_loss(*now, *targets, config.entropy_coef, config.value_coef, num_rows)


class Ppo:
    """Proximal policy optimisation: several epochs of shuffled minibatches a slot."""

    at_behaviour = False

    def __init__(self, config: PpoConfig) -> None:
        self._config = config
        self.reevaluates = config.reevaluate
        self.anneals_loss = config.anneal_clip_coef

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        config = self._config
        return torch.optim.Adam(
            parameters, lr=config.learning_rate, eps=config.adam_eps, fused=True
        )

    def learning_rate(self, remaining: float) -> float:
        config = self._config
        return config.learning_rate * (remaining if config.anneal_learning_rate else 1.0)

    def targets(self, rollout: Rollout) -> Targets:
        advantages = gae(rollout, self._config.gamma, self._config.gae_lambda)
        return Targets(advantages, advantages + rollout.values[:-1])

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        config = self._config
        size = num_rows // config.num_minibatches
        for order in minibatch_orders(seed, update, config.update_epochs, num_rows):
            yield from order.reshape(-1, size)

    def weigh(self, advantages: Tensor) -> Tensor:
        if not self._config.normalize_advantage or len(advantages) < 2:
            return advantages
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        return ppo_loss(
            *now,
            *old,
            *targets,
            clip_coef=config.clip_coef * (remaining if config.anneal_clip_coef else 1.0),
            clip_value_loss=config.clip_value_loss,
            entropy_coef=config.entropy_coef,
            value_coef=config.value_coef,
            num_rows=num_rows,
        )


def build_algorithm(config: AlgoConfig) -> Algorithm:
    """The algorithm that a configuration describes."""
    return Ppo(config) if isinstance(config, PpoConfig) else A2c(config)
