"""Shards: the fixed parts of a slot whose gradients are summed in a fixed order.

A shard is a range of columns. The number of shards belongs to a run's identity, and the number of
ranks (processes) that host them does not. A rank hosts as many shards as the others, one after the
other by address.

In shapes, K is the number of policies, S the number of shards that a rank hosts, T the number of
env steps of a slot, B the number of the rank's columns and w = B / (S * K) the number of columns of
one policy in one shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tree_sum(gradients: Sequence[list[Tensor]]) -> list[Tensor]:
    """Adds the gradients of shards in the order of a binary tree; overwrites and returns the first.

    Args:
        gradients: the tensors of each shard; a power of two of shards.
    """
    while len(gradients) > 1:
        for left, right in zip(gradients[::2], gradients[1::2], strict=True):
            torch._foreach_add_(left, right)
        gradients = gradients[::2]
    return gradients[0]


def by_shard(values: Tensor, num_policies: int, num_shards: int) -> Tensor:
    """Returns the cells [T, B] of a slot as rows of policies and shards, [K, S, T * w]."""
    num_steps, num_columns = values.shape
    width = num_columns // (num_shards * num_policies)
    cells = values.view(num_steps, num_shards, width, num_policies)
    return cells.permute(3, 1, 0, 2).reshape(num_policies, num_shards, num_steps * width)


def slot_rows(rows: Tensor, width: int) -> Tensor:
    """Returns for rows of shards, int64 [S, n], their indices among a policy's rows of the slot.

    Args:
        rows: for each shard, indices among the shard's own rows, in time-major order.
        width: w.
    """
    num_shards = len(rows)
    t, c = rows // width, rows % width
    first = torch.arange(num_shards, device=rows.device)[:, None] * width
    return t * (num_shards * width) + first + c
