"""The meeting of ranks at a start, at which entries of earlier starts in the store do no harm."""

from __future__ import annotations

import json
import time
from uuid import uuid4

from torch.distributed import Store  # type: ignore[attr-defined]

from htsrl_cli.errors import RunError

# Seconds between two looks at the store.
_PERIOD_S = 0.02
# Seconds after which a rank no longer waits for the others, as in torch.
_PATIENCE_S = 1800.0
_OFFER = "offer"


def meet(store: Store, rank: int, size: int, patience_s: float = _PATIENCE_S) -> str:
    """Blocks until all ranks of this start have met; returns a name that no earlier start had.

    `torchrun --max-restarts` keeps its store, so that a rank could take the address of one that has
    ended for that of its successor. Counting restarts does not help: the `torchrun` of another
    machine may have counted differently. Here each process has a name of its own. Rank 0 offers a
    meeting to the names that it finds, a process accepts only an offer to its own name, and the
    meeting begins when all have accepted. If a name changes before, rank 0 makes another offer.

    Args:
        store: the store that all ranks share.
        patience_s: seconds after which the wait ends with an error.

    Raises:
        RunError: the other ranks did not come.
    """
    name = uuid4().hex
    store.set(_name_key(rank), name)
    deadline = time.monotonic() + patience_s
    offer = ""
    while time.monotonic() < deadline:
        if rank == 0 and (names := _names(store, size)):
            meeting, invited = json.loads(offer) if offer else ("", [])
            if names != invited:
                offer = json.dumps([uuid4().hex, names])
                store.set(_OFFER, offer)
            elif store.check([_accepted_key(meeting, other) for other in range(1, size)]):
                store.set(_begun_key(meeting), "1")
                return str(meeting)
        elif rank != 0 and store.check([_OFFER]):
            meeting, invited = json.loads(store.get(_OFFER))
            if invited[rank] == name:
                store.set(_accepted_key(meeting, rank), "1")
                if store.check([_begun_key(meeting)]):
                    return str(meeting)
        time.sleep(_PERIOD_S)
    raise RunError(f"rank {rank} of {size} waited {patience_s:g} seconds for the other ranks")


def _names(store: Store, size: int) -> list[str]:
    """Returns the newest name of each rank; none if a rank never came."""
    keys = [_name_key(rank) for rank in range(size)]
    return [store.get(key).decode() for key in keys] if store.check(keys) else []


def _name_key(rank: int) -> str:
    return f"name/{rank}"


def _accepted_key(meeting: str, rank: int) -> str:
    return f"{meeting}/accepted/{rank}"


def _begun_key(meeting: str) -> str:
    return f"{meeting}/begun"
