"""Sequences: the columns of a slot, for policies whose memory ties env steps to those before.

A gradient needs all env steps of a column in order, so minibatches and micro-batches consist of
whole columns. A slot is evaluated as actors do it: in passes of their constant shape, one env step
after the other. On a CPU, with the actors' precision, the outputs then have the same bits.

In shapes, T is the number of env steps of a slot, B the number of its columns, N = T * B the number
of its rows, S the numbers of a memory state, D the number of action dimensions and M the number of
categories in all of them. Rows are in time-major order: row t * B + c is env step t of column c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from htsrl_cli.algorithms.base import OldPolicy
from htsrl_cli.envs.base import ActionSpec
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.distributions import log_prob_entropy, mask_logits
from htsrl_cli.networks.recurrent import forget
from htsrl_cli.storage.slot import Slot


class Sequences(NamedTuple):
    """The memory of each column of a slot: where it begins, and where it becomes 0.

    Attributes:
        memories: memory states before row 0, float32 [B, S].
        starts: bool [T + 1, B]; True where an observation begins an episode. Row 0 is False,
            because `memories` already is 0 there.
    """

    memories: Tensor
    starts: Tensor

    @classmethod
    def of(cls, slot: Slot, device: torch.device) -> Sequences | None:
        """Returns the sequences of a slot; None if the policies have no memory."""
        if slot.memories is None:
            return None
        ends = torch.from_numpy(slot.terminated | slot.truncated)
        starts = torch.cat([torch.zeros_like(ends[:1]), ends])
        return cls(torch.from_numpy(slot.memories[0]).to(device), starts.to(device))

    @classmethod
    def of_one_step(cls, memories: Tensor) -> Sequences:
        """Returns the sequences of a slot of one env step, in the middle of episodes."""
        return cls(
            memories, torch.zeros(2, len(memories), dtype=torch.bool, device=memories.device)
        )

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.starts) - 1

    def unroll(self, policy: ActorCritic, obs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Computes whole columns with gradients.

        Args:
            obs: the rows' observations [T * n, *obs_shape].
            rows: indices of all rows of n columns in time-major order, int64 [T * n].

        Returns:
            Distribution parameters [T * n, P] and values [T * n].
        """
        columns = rows[: len(rows) // self.num_steps]
        return policy.unroll(obs, self.memories[columns], self.starts[:-1, columns])


def rows_of(columns: Tensor, width: int, num_steps: int) -> Tensor:
    """Returns the indices of all rows of some columns of each shard, int64 [S, T * n].

    Args:
        columns: indices of columns among those of one policy in a shard, int64 [S, n] for S shards.
        width: number of columns of one policy in a shard.
        num_steps: T.
    """
    steps = torch.arange(num_steps, device=columns.device) * width
    return (steps[:, None] + columns[:, None]).flatten(1)


class Evaluated(NamedTuple):
    """The part of a slot that is evaluated, with an axis for the env step and one for the column.

    Attributes:
        obs: observations [T + 1, B, *obs_shape].
        actions: actions [T, B, D].
        masks: bool [T, B, M], True for allowed actions; None if there are no masks.
        sequences: the memory of the columns.
    """

    obs: Tensor
    actions: Tensor
    masks: Tensor | None
    sequences: Sequences

    @classmethod
    def of(
        cls, obs: Tensor, actions: Tensor, masks: Tensor | None, sequences: Sequences
    ) -> Evaluated:
        """Returns what an evaluation reads, given arrays whose first axis holds the rows."""
        width = len(sequences.memories)

        def by_step(rows: Tensor) -> Tensor:
            return rows.view(-1, width, *rows.shape[1:])

        allowed = None if masks is None else by_step(masks)
        return cls(by_step(obs), by_step(actions), allowed, sequences)


def evaluations(
    policies: nn.ModuleList,
    actions: ActionSpec,
    slot: Evaluated,
    num_shards: int,
    num_rows: int,
    found: OldPolicy,
) -> list[Callable[[], None]]:
    """Returns functions that together evaluate a slot; they may run at the same time.

    A pass has columns of one shard only. Its rows then are those of actors with fixed rows, and do
    not depend on how many shards this rank hosts.

    Args:
        policies: the `ActorCritic` networks; with K policies, policy k takes columns k, k + K, and
            so on.
        actions: the form of the policies' actions.
        num_shards: number of shards that this rank hosts.
        num_rows: rows of a pass of the actors (`actors.inference_batch`).
        found: log-probabilities [N] and values [N + B], which the functions write.
    """
    width, number = len(slot.sequences.memories), len(policies)
    by_step = OldPolicy(*(array.view(-1, width) for array in found))
    columns = torch.arange(width, device=slot.obs.device)
    networks: list[Any] = list(policies)
    return [
        partial(_evaluate, network, actions, slot, own, num_rows, by_step)
        for k, network in enumerate(networks)
        for shard in columns.chunk(num_shards)
        for own in torch.split(shard[k::number], num_rows)
    ]


@torch.no_grad()
def _evaluate(
    policy: ActorCritic,
    actions: ActionSpec,
    slot: Evaluated,
    columns: Tensor,
    num_rows: int,
    found: OldPolicy,
) -> None:
    """Evaluates at most `num_rows` columns of a slot, one pass for each env step.

    Args:
        columns: indices of the columns, int64 [n].
        found: log-probabilities [T, B] and values [T + 1, B], whose columns are written.
    """
    n = len(columns)

    def padded(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(num_rows - n, *values.shape[1:])])

    states = padded(slot.sequences.memories[columns])
    starts = slot.sequences.starts[:, columns]
    for t, obs in enumerate(slot.obs):
        states[:n] = forget(states[:n], starts[t])
        params, values, states = policy.step(padded(obs[columns]), states)
        found.values[t, columns] = values[:n]
        if t < len(slot.actions):
            masks = None if slot.masks is None else padded(slot.masks[t, columns])
            chosen = padded(slot.actions[t, columns])
            log_probs, _ = log_prob_entropy(actions, mask_logits(params, masks), chosen)
            found.log_probs[t, columns] = log_probs[:n]
