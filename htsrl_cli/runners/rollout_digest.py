"""The digest of a run's experience: a hash of all its rollouts, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from htsrl_cli.storage.slot import Slot


class RolloutDigest:
    """A hash chain over full slots for each shard: h[j] = sha256(h[j-1], columns of slot j).

    A thread hashes a slot while the learner learns from it (hashlib releases the GIL).

    Args:
        is_on: if False, nothing is hashed and the digest stays empty.
        num_shards: number of shards whose columns the slots hold.

    Attributes:
        chains: the digests of the shards so far, as hex digits; empty before the first slot.
    """

    def __init__(self, is_on: bool, num_shards: int) -> None:
        self._is_on = is_on
        self.chains = [""] * num_shards
        self._thread = ThreadPoolExecutor(1, "hasher")

    def begin(self, slot: Slot) -> Future[list[str]]:
        """Starts hashing the next slot; returns a future to pass to `add`."""
        return self._thread.submit(self._next, slot)

    def add(self, begun: Future[list[str]]) -> None:
        """Waits for the hashes that `begin` started, and makes them the run's digests so far."""
        self.chains = begun.result()

    def with_slot(self, slot: Slot | None) -> list[str]:
        """Returns the shards' digests, extended by `slot` if it is not None.

        The chains themselves do not change.
        """
        return self.chains if slot is None else self.begin(slot).result()

    def close(self) -> None:
        """Stops the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _next(self, slot: Slot) -> list[str]:
        if not self._is_on:
            return self.chains
        if len(self.chains) == 1:
            return [slot.sha256(self.chains[0])]
        width = slot.rewards.shape[1] // len(self.chains)
        return [
            slot.columns(slice(s * width, (s + 1) * width)).sha256(chain)
            for s, chain in enumerate(self.chains)
        ]


def cut_chains(joined: str, num_shards: int) -> list[str]:
    """Returns the digests of shards from their concatenation in a checkpoint."""
    length = len(joined) // num_shards
    return [joined[s * length : (s + 1) * length] for s in range(num_shards)]


def digest_of_run(chains: Sequence[str]) -> str | None:
    """Returns the digest of a run from those of all its shards; None if nothing was hashed."""
    if len(chains) == 1 or not chains[0]:
        return chains[0] or None
    return hashlib.sha256(bytes.fromhex("".join(chains))).hexdigest()
