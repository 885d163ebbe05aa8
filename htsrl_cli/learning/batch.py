"""The batch of an update: the rows of a slot that the learner and its gradient engine read."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from htsrl_cli.algorithms.base import OldPolicy, Targets
from htsrl_cli.learning.sequences import Sequences


class Batch(NamedTuple):
    """The N = T * B rows of a slot (T env steps, B columns), in time-major order, on the device.

    Attributes:
        obs: observations [N, *obs_shape].
        actions: actions [N, D].
        masks: bool [N, M], True for the actions that were allowed; None if there are no masks.
        noise: the noise of squashed actions, float32 [N, D]; None for other actions.
        old: log-probabilities of the actions, and values of the observations, both computed by the
            old policy; each float32 [N].
        targets: advantages, returns and importance weights, each float32 [N].
        activations: activations that actors or `GradientEngine.evaluate` kept, each with N rows
            or more; empty if the gradient has to begin with a forward pass.
        width: number of columns of one policy in one shard.
        sequences: the memory of the columns; None if the policies have none. Minibatches then
            consist of whole columns.
    """

    obs: Tensor
    actions: Tensor
    masks: Tensor | None
    noise: Tensor | None
    old: OldPolicy
    targets: Targets
    activations: list[Tensor]
    width: int
    sequences: Sequences | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns all tensors except the activations, in a fixed order."""
        optional = [tensor for tensor in (self.masks, self.noise) if tensor is not None]
        sequences = self.sequences or ()
        return self.obs, self.actions, *optional, *self.old, *self.targets, *sequences
