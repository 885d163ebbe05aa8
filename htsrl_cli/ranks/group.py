"""The group of ranks that train one run: the processes that `torchrun` has started.

Each rank hosts some of the run's shards. Ranks exchange bytes; they never let a collective add,
because the order of its additions depends on the number of ranks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from htsrl_cli.errors import RunError
from htsrl_cli.lifetime import ask_to_end_with_parent
from htsrl_cli.ranks.environment import RUN_NUMBER, is_started_by_torchrun, rank_and_size
from htsrl_cli.ranks.meeting import meet
from htsrl_cli.ranks.shards import tree_sum
from htsrl_cli.ranks.watch import Watch

# Bytes of all ranks' gradients up to which each rank sums the whole gradients.
_SMALL = 1 << 20


class Group:
    """The ranks of a run, as one of them sees them; a single rank by default.

    Args:
        watch: the progress of all ranks; None for a single rank.

    Attributes:
        rank: number of this rank, from 0.
        size: number of ranks, a power of two.
        exchange_s: seconds spent in exchanges so far, waiting for other ranks included.
    """

    _engine: dist.ProcessGroup | None = None

    def __init__(self, rank: int = 0, size: int = 1, watch: Watch | None = None) -> None:
        self.rank = rank
        self.size = size
        self.exchange_s = 0.0
        self._watch = watch

    def limit(self, timeout_s: float) -> None:
        """Sets the time after which an exchange fails; all ranks must call this together.

        Args:
            timeout_s: seconds.
        """
        if self.size > 1:
            self._engine = dist.new_group(timeout=timedelta(seconds=timeout_s))

    def columns(self, local: Tensor) -> Tensor:
        """Returns the columns of all ranks, [..., B * size], for columns of this rank, [..., B]."""
        if self.size == 1:
            return local
        return torch.cat(self._all(local.contiguous()), dim=-1)

    def sum(self, gradient: list[Tensor], losses: Tensor) -> Tensor:
        """Sums the ranks' gradients in place, in the order of the tree over all shards.

        Each rank sums one slice of the gradients of all ranks, and sends the sums to all. If each
        rank summed the whole gradients, it would receive more bytes from three or more ranks, but
        would wait for one message instead of two. It does so if the gradients are small.

        Args:
            gradient: the sum over this rank's shards, float32.
            losses: parts of the loss, float32 [K, S, ...] with this rank's shards.

        Returns:
            The losses with the shards of all ranks.
        """
        if self.size == 1:
            return losses
        flat = torch.cat([tensor.flatten() for tensor in gradient])
        number = len(flat)
        is_whole = self.size == 2 or 4 * number * self.size <= _SMALL
        own = flat if is_whole else self._own_slice(flat)
        # The losses travel with the gradient: a message of their own would cost a second delay.
        heard = self._all(torch.cat([own, losses.flatten()]))
        parts = [part[: len(own)] for part in heard]
        sums = tree_sum([[part] for part in parts])[0] if is_whole else torch.cat(parts)[:number]
        sizes = [tensor.numel() for tensor in gradient]
        for tensor, total in zip(gradient, torch.split(sums, sizes), strict=True):
            tensor.copy_(total.view_as(tensor))
        return torch.cat([part[len(own) :].view_as(losses) for part in heard], dim=1)

    def _own_slice(self, flat: Tensor) -> Tensor:
        """Returns the sum of this rank's slice of the gradients; slices have equal lengths."""
        width = -(-len(flat) // self.size)
        sent = torch.zeros(self.size * width, device=flat.device)
        sent[: len(flat)] = flat
        received = torch.empty_like(sent)
        with self._exchange():
            dist.all_to_all_single(received, sent, group=self._engine)
        return tree_sum([[part] for part in received.view(self.size, width).unbind()])[0]

    def _all(self, local: Tensor) -> list[Tensor]:
        """Returns the tensors of all ranks."""
        parts = [torch.empty_like(local) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(parts, local, self._engine)
        return parts

    def gather(self, what: Any) -> list[Any]:
        """Returns the objects of all ranks, in order, on rank 0; an empty list on other ranks."""
        if self.size == 1:
            return [what]
        found: list[Any] = [None] * self.size
        with self._exchange():
            dist.gather_object(what, found if self.rank == 0 else None, group=self._engine)
        return found if self.rank == 0 else []

    def scatter(self, parts: Sequence[Any]) -> Any:
        """Returns this rank's entry of rank 0's list; other ranks give an empty list."""
        if self.size == 1:
            return parts[0]
        box = [None]
        with self._exchange():
            dist.scatter_object_list(box, list(parts) or None, group=self._engine)
        return box[0]

    def broadcast(self, what: Any) -> Any:
        """Returns the object of rank 0."""
        if self.size == 1:
            return what
        box = [what]
        with self._exchange():
            dist.broadcast_object_list(box, group=self._engine)
        return box[0]

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Counts an exchange; raises an error that names the rank with which it failed."""
        assert self._watch is not None
        self._watch.count += 1
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            raise RunError(self._watch.lost(error)) from error
        self.exchange_s += time.monotonic() - began


ALONE = Group()


def _connect(rank: int, size: int) -> dist.Store:  # type: ignore[name-defined]
    """Connects this process to the other ranks; returns the store that they share."""
    found, _, _ = next(rendezvous("env://"))
    prefix = f"htsrl/{os.environ.get(RUN_NUMBER, '0')}"
    shared = dist.PrefixStore(prefix, found)  # type: ignore[attr-defined]
    store = dist.PrefixStore(meet(shared, rank, size), shared)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return store


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets signals end this process at once, until the end of the `with` block.

    Python calls its signal handlers only after torch returns, which may take half an hour if the
    other ranks do not come.
    """
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def joined() -> Iterator[Group]:
    """Connects this process to the other ranks until the end of the `with` block."""
    rank, size = rank_and_size()
    if size == 1:
        yield ALONE
        return
    if is_started_by_torchrun():
        # A rank that waits for others would not notice that torchrun was killed.
        ask_to_end_with_parent()
    try:
        with _ended_by_signals():
            store = _connect(rank, size)
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunError(
            f"rank {rank} of {size} cannot meet the others at MASTER_ADDR:MASTER_PORT = {place} "
            f"({str(error).splitlines()[0]}): start all ranks again; rank 0 must be reachable there"
        ) from error
    try:
        with closing(Watch(store, rank, size)) as watch:
            yield Group(rank, size, watch)
    finally:
        dist.destroy_process_group()
