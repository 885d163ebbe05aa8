"""The interface of an algorithm: targets, minibatches, loss and optimizer.

Shapes: N = T * B rows of a slot, n rows of a micro-batch, D action dimensions. Losses are sums over
rows of terms that have already been divided by the minibatch's size: micro-batches add up to the
minibatch's mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from htsrl_cli.algorithms.returns import Rollout

Indices = npt.NDArray[np.int64]


class OldPolicy(NamedTuple):
    """The log-probabilities and values of rows by the policy before the update, float32 [n].

    With `Algorithm.reevaluates` it is the one that the update starts from, else the one that
    collected the data.
    """

    log_probs: Tensor
    values: Tensor


class Prediction(NamedTuple):
    """The outputs of the differentiated policy for rows, float32 [n]."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


class Targets(NamedTuple):
    """The targets of an update, float32: [T, B] or, for rows, [n]."""

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

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Returns the optimizer of the parameters; the learner sets its learning rate."""

    def targets(self, rollout: Rollout) -> Targets:
        """Returns advantages and returns, [T, B]."""

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        """Yields the rows of every optimizer step of update number `update`."""

    def weigh(self, advantages: Tensor) -> Tensor:
        """Returns a minibatch's advantages as they enter the loss."""

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a micro-batch's share of the loss of a minibatch, and its parts by name.

        Args:
            num_rows: rows of the minibatch.
            remaining: fraction of all updates that is still to come.
        """


class WholeSlot:
    """The minibatches of an algorithm that takes one step a slot, on all of its rows.

    Its gradient is taken at the parameters that collected the data.
    """

    at_behaviour = True
    reevaluates = False
    anneals_loss = False

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        """Yields all rows once."""
        yield np.arange(num_rows)

    def weigh(self, advantages: Tensor) -> Tensor:
        """Returns advantages as they are."""
        return advantages
