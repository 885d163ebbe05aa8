"""The interface of an algorithm: targets, minibatches, loss and optimizer.

In shapes, T is the number of env steps of each environment in a rollout, B is the number of columns
and n is the number of rows of a micro-batch. The loss of a micro-batch is a sum over its rows,
divided by the number of rows of the minibatch. The losses of a minibatch's micro-batches therefore
add up to the mean loss of the minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from htsrl_cli.algorithms.returns import Rollout

Indices = npt.NDArray[np.int64]


class OldPolicy(NamedTuple):
    """Outputs of the old policy for n rows, float32 [n].

    If `Algorithm.reevaluates` is true, the old policy is the policy that the update starts from.
    Otherwise, the old policy is the behavior policy.

    Attributes:
        log_probs: log-probabilities of the actions taken.
        values: estimated values.
    """

    log_probs: Tensor
    values: Tensor


class Prediction(NamedTuple):
    """Outputs of the differentiated policy for n rows, float32 [n], with gradients.

    The differentiated policy is the learner's current policy or, if `Algorithm.at_behaviour` is
    True, the behavior policy.

    Attributes:
        log_probs: log-probabilities of the actions taken.
        entropy: entropies of the action distributions.
        values: estimated values.
    """

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


class Targets(NamedTuple):
    """The targets of an update, float32 [T, B] for a whole slot or [n] for n rows.

    Attributes:
        advantages: advantages of the actions taken.
        returns: targets of the values.
        weights: importance weights of the actions in the loss; 1 where nothing is corrected.
    """

    advantages: Tensor
    returns: Tensor
    weights: Tensor


class Algorithm(Protocol):
    """An actor-critic algorithm.

    Attributes:
        at_behaviour: True if the gradient is computed at the parameters of the behavior policy
            (A2C), False if it is computed at the current parameters (PPO).
        reevaluates: True if, under policy lag, an update first recomputes the log-probabilities and
            values of the slot with the current parameters.
        max_weight: largest importance weight in the loss; infinity if there is no limit, or if the
            loss has no weights.
        anneals_loss: True if the loss function depends on the number of updates made, for example
            through an annealed clipping range.
        makes_one_step: True if every update makes only one optimizer step.
    """

    at_behaviour: bool
    reevaluates: bool
    max_weight: float
    anneals_loss: bool
    makes_one_step: bool

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Builds the optimizer; the learner sets the learning rate before every optimizer step."""

    def targets(self, rollout: Rollout) -> Targets:
        """Computes the advantages, returns and importance weights of a slot, float32 [T, B]."""

    def minibatches(self, seed: int, update: int, num_rows: int, shard: int) -> Iterator[Indices]:
        """Yields a shard's row indices of each minibatch of update `update`, int64 [rows].

        The learner makes one optimizer step for each minibatch. The indices count only the rows of
        one policy in the shard; every policy uses the same indices. If the policies have a memory,
        indices are those of columns instead of rows, and minibatches contain all rows of a column.

        Args:
            seed: the run's seed; a random order of rows is derived from it, `update` and `shard`.
            num_rows: how many of the shard's rows (or columns) each policy learns from.
            shard: number of the shard.
        """

    def weigh(self, advantages: Tensor) -> Tensor:
        """Prepares a minibatch's advantages [rows] for the loss, for example by normalization."""

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a micro-batch's share of the minibatch's loss, and the share's parts by name.

        Args:
            now: outputs of the differentiated policy, [n].
            old: outputs of the old policy, [n].
            targets: targets of the rows, [n]; the advantages come from `weigh`.
            num_rows: number of rows of the minibatch.
            remaining: fraction of the run's updates not yet made, 1 for the first update.
        """


class WholeSlot:
    """The base class of algorithms that make one optimizer step for each rollout, on all its rows.

    The gradient is computed at the parameters of the behavior policy.
    """

    at_behaviour = True
    reevaluates = False
    max_weight = math.inf
    anneals_loss = False
    makes_one_step = True

    def minibatches(self, seed: int, update: int, num_rows: int, shard: int) -> Iterator[Indices]:
        """Yields all rows as one minibatch."""
        yield np.arange(num_rows)

    def weigh(self, advantages: Tensor) -> Tensor:
        """Returns the advantages unchanged."""
        return advantages
