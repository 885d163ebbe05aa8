"""The digest of a run's experience: a hash of all its rollouts, in order."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from htsrl_cli.checkpoints.state import State
from htsrl_cli.storage.slot import Slot


class RolloutDigest:
    """A hash chain over full slots: h[j] = sha256(h[j-1], slot j).

    A thread hashes a slot while the learner learns from it (hashlib releases the GIL).

    Args:
        is_on: if False, nothing is hashed and the digest stays empty.
    """

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._sha256 = ""
        self._thread = ThreadPoolExecutor(1, "hasher")

    def begin(self, slot: Slot) -> Future[str]:
        """Starts hashing the next slot; returns a future to pass to `add`."""
        if not self._is_on:
            return self._thread.submit(str)
        return self._thread.submit(slot.sha256, self._sha256)

    def add(self, begun: Future[str]) -> None:
        """Waits for the hash that `begin` started, and makes it the run's digest so far."""
        self._sha256 = begun.result()

    def with_slot(self, slot: Slot | None) -> str | None:
        """Returns the digest, extended by `slot` if it is not None; None if nothing was hashed.

        The chain itself does not change.
        """
        digest = self.begin(slot).result() if slot is not None else self._sha256
        return digest or None

    def state(self) -> State:
        """Returns the digest so far, for a checkpoint."""
        return State({}, {"sha256": self._sha256})

    def load_state(self, state: State) -> None:
        """Continues from a digest that `state` returned."""
        self._sha256 = state.values["sha256"]

    def close(self) -> None:
        """Stops the thread."""
        self._thread.shutdown(cancel_futures=True)
