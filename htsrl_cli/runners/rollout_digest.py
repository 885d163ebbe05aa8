"""The digest of all experience of a run, in order."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from htsrl_cli.checkpoints.state import State
from htsrl_cli.storage.slot import Slot


class RolloutDigest:
    """A chain over the slots, h[j] = sha256(h[j-1], slot j).

    A slot is hashed while the learner learns from it (hashlib releases the GIL).

    Args:
        is_on: hash at all; otherwise the digest stays empty.
    """

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._sha256 = ""
        self._thread = ThreadPoolExecutor(1, "hasher")

    def begin(self, slot: Slot) -> Future[str]:
        """Starts to hash the next slot; `add` takes what that gives."""
        if not self._is_on:
            return self._thread.submit(str)
        return self._thread.submit(slot.sha256, self._sha256)

    def add(self, begun: Future[str]) -> None:
        """Waits for the next slot's link of the chain and adds it."""
        self._sha256 = begun.result()

    def with_slot(self, slot: Slot | None) -> str | None:
        """Returns the digest, as it is with one more slot if given; None where it is off."""
        digest = self.begin(slot).result() if slot is not None else self._sha256
        return digest or None

    def state(self) -> State:
        """Returns the chain's last link."""
        return State({}, {"sha256": self._sha256})

    def load_state(self, state: State) -> None:
        """Goes on from a link."""
        self._sha256 = state.values["sha256"]

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)
