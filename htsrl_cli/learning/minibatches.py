"""The minibatches of an update: which rows of a slot belong to each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.base import Algorithm
from htsrl_cli.learning.batch import Batch
from htsrl_cli.learning.sequences import rows_of


def minibatches(
    algorithm: Algorithm, batch: Batch, seed: int, update: int, num_shards: int, num_rows: int
) -> Iterator[Tensor]:
    """Yields each minibatch's row indices in every shard of the run, int64 [shards, rows].

    With a memory, the algorithm divides and shuffles columns, whose rows stay together in
    time-major order.

    Args:
        batch: the slot of the update.
        seed: the run's seed.
        update: number of the update.
        num_shards: number of shards of the run.
        num_rows: how many rows of a shard each policy learns from.
    """
    sequences = batch.sequences
    divided = num_rows if sequences is None else batch.width
    of_shards = (algorithm.minibatches(seed, update, divided, shard) for shard in range(num_shards))
    for parts in zip(*of_shards, strict=True):
        rows = torch.from_numpy(np.stack(parts)).to(batch.obs.device)
        yield rows if sequences is None else rows_of(rows, batch.width, sequences.num_steps)
