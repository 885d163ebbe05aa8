"""The progress of all ranks, by which the rank that ends or hangs is named."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

import psutil
from torch.distributed import Store  # type: ignore[attr-defined]

# Seconds between two reports of a rank.
_PERIOD_S = 1.0
# Seconds that the store may take to answer.
_STORE_TIMEOUT_S = 3.0


class _Place(NamedTuple):
    """The process of a rank: its machine, process id, and start in seconds since the epoch.

    The host alone does not tell machines apart, because containers can share a name.
    """

    host: str
    machine: str
    pid: int
    started: float


class Watch:
    """The progress of all ranks, as they report it to the store of `torchrun`.

    All ranks take part in the same exchanges, one after the other. A thread reports once a second
    how many exchanges this rank has begun, so that the exchanges themselves cost nothing more.

    Args:
        store: the store through which the ranks found each other.

    Attributes:
        count: number of exchanges that this rank has begun.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        # Threads share no connection, because one would wait for the other.
        self._store = store.clone()  # type: ignore[attr-defined]
        self._rank = rank
        self._size = size
        self._ended = threading.Event()
        self.count = 0
        self._store.set(_place_key(rank), json.dumps(_own_place()))
        self._report()
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, unless it waits for a store that cannot be reached."""
        self._ended.set()
        self._thread.join(_PERIOD_S)

    def lost(self, error: RuntimeError) -> str:
        """Returns an error message for an exchange that failed.

        Those ranks have ended or hang that have begun fewer exchanges than this rank. If they hang
        and run on this machine, they are killed: `torchrun` would wait for them.

        Args:
            error: the error of the exchange.
        """
        detail = str(error).splitlines()[0]
        hangs = "timed out" in detail.lower()
        behind = self._ask_behind()
        names = [f"rank {rank} ({p.host}, process {p.pid})" for rank, p in behind.items()]
        if hangs:
            for place in behind.values():
                _kill(place)
        if hangs and names:
            return (
                f"rank {self._rank} of {self._size} waited in vain for {', '.join(names)}: raise "
                "runner.rank_timeout_s if it is only slow, or resume from the last checkpoint"
            )
        return (
            f"rank {self._rank} of {self._size} lost the connection to "
            f"{', '.join(names) or 'another rank'}, which has ended or cannot be reached "
            f"({detail}); resume from the last checkpoint"
        )

    def _run(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            try:
                self._report()
            except RuntimeError:
                # The store has ended, and with it the run.
                return

    def _report(self) -> None:
        self._store.set(_count_key(self._rank), str(self.count))

    def _ask_behind(self) -> dict[int, _Place]:
        """Returns what `_behind` returns; an empty dictionary if the store does not answer."""
        found: dict[int, _Place] = {}

        def ask() -> None:
            # The store may have ended.
            with suppress(RuntimeError):
                found.update(self._behind())

        # Without a network, the store's own timeouts do not hold.
        asking = threading.Thread(target=ask, name="rank-behind", daemon=True)
        asking.start()
        asking.join(1.5 * _PERIOD_S + _STORE_TIMEOUT_S)
        return {} if asking.is_alive() else found

    def _behind(self) -> dict[int, _Place]:
        """Returns the places of the ranks that have begun the fewest exchanges, if not all have."""
        self._report()
        # Ranks that are alive report meanwhile.
        time.sleep(1.5 * _PERIOD_S)
        counts = [int(self._store.get(_count_key(rank))) for rank in range(self._size)]
        fewest = min(counts)
        return {
            rank: _Place(*json.loads(self._store.get(_place_key(rank))))
            for rank, count in enumerate(counts)
            if count == fewest < self.count
        }


def _count_key(rank: int) -> str:
    return f"count/{rank}"


def _place_key(rank: int) -> str:
    return f"place/{rank}"


def _machine() -> str:
    """Returns a name of this machine, or of this container, which has namespaces of its own."""
    if platform.system() != "Linux":
        return platform.node()
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return " ".join([boot, *(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net"))])


def _own_place() -> _Place:
    process = psutil.Process()
    return _Place(platform.node(), _machine(), process.pid, process.create_time())


def _kill(place: _Place) -> None:
    """Kills the process of a rank if it runs on this machine."""
    if place.machine != _machine():
        return
    try:
        process: Any = psutil.Process(place.pid)
        # Another process may have got the process id.
        if process.create_time() == place.started:
            process.kill()
    except psutil.Error:
        pass
