"""The interface of an algorithm: targets, minibatches, loss and optimizer.

Shapes: T env steps, B columns, n rows of a micro-batch. A micro-batch's loss is a sum over its rows
divided by the size of the minibatch: the losses of micro-batches add up to the minibatch's mean.
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
    """Log-probabilities and values of rows under the policy before the update, float32 [n].

    This is the policy that the update starts from if `Algorithm.reevaluates`, else the behavior
    policy.
    """

    log_probs: Tensor
    values: Tensor


class Prediction(NamedTuple):
    """Outputs of the policy that is differentiated, float32 [n].

    Attributes:
        log_probs: log-probabilities of the actions taken.
        entropy: entropies of the action distributions.
        values: estimated values.
    """

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


class Targets(NamedTuple):
    """The targets of an update, float32 [T, B] for a slot or [n] for rows."""

    advantages: Tensor
    returns: Tensor


class Algorithm(Protocol):
    """An actor-critic algorithm.

    Attributes:
        at_behaviour: True if the gradient is taken at the parameters of the behavior policy (A2C),
            not at the current ones (PPO).
        reevaluates: True if, under policy lag, log-probabilities and values are recomputed with
            the parameters that the update starts from.
        anneals_loss: True if the loss changes from update to update (an annealed clipping range).
    """

    at_behaviour: bool
    reevaluates: bool
    anneals_loss: bool

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Builds the optimizer of the parameters; the learner sets its learning rate."""

    def targets(self, rollout: Rollout) -> Targets:
        """Computes advantages and returns of a slot, float32 [T, B]."""

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        """Yields the rows, int64 [n], of each optimizer step of update number `update`.

        Args:
            seed: the run's seed, from which random orders are derived.
            num_rows: rows of a slot that a policy learns from.
        """

    def weigh(self, advantages: Tensor) -> Tensor:
        """Returns a minibatch's advantages [n] as the loss uses them, normalized for example."""

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a micro-batch's share of the minibatch's loss, and its parts by name.

        Args:
            now: outputs of the policy that is differentiated, [n].
            old: outputs of the policy before the update, [n].
            targets: targets of the rows, [n]; advantages are weighed.
            num_rows: rows of the minibatch.
            remaining: fraction of all updates that is still to come, from 1 down to 0.
        """


class WholeSlot:
    """The base of an algorithm that makes one optimizer step for each slot, on all rows.

    Its gradient is taken at the parameters of the behavior policy.
    """

    at_behaviour = True
    reevaluates = False
    anneals_loss = False

    def minibatches(self, seed: int, update: int, num_rows: int) -> Iterator[Indices]:
        """Yields all rows as one minibatch."""
        yield np.arange(num_rows)

    def weigh(self, advantages: Tensor) -> Tensor:
        """Returns the advantages unchanged."""
        return advantages
