"""The meeting of ranks: only processes of the same start meet, whatever the store has kept."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from htsrl_cli.errors import RunError
from htsrl_cli.ranks.meeting import meet

SIZE = 4


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2 * SIZE) as pool:
        yield pool


def test_starts_one_after_the_other(pool: ThreadPoolExecutor) -> None:
    store, meetings = HashStore(), []
    # The last ranks are the first to come, and find what the start before has left.
    for order in (range(SIZE), reversed(range(SIZE)), (1, 0, 3, 2)):
        found = [pool.submit(meet, store, rank, SIZE, 60.0) for rank in order]
        (meeting,) = {future.result() for future in found}
        meetings.append(meeting)
    assert len(set(meetings)) == 3


def test_a_rank_that_ends_before_the_meeting_is_replaced(pool: ThreadPoolExecutor) -> None:
    store = HashStore()
    # Rank 2 ends after it has come. Rank 0 invites it, and then its successor.
    with pytest.raises(RunError, match=r"rank 2 of 4 waited 0\.1 seconds"):
        meet(store, 2, SIZE, 0.1)
    found: list[Future[str]] = [pool.submit(meet, store, rank, SIZE, 60.0) for rank in (0, 1, 3)]
    with pytest.raises(TimeoutError):
        found[0].result(0.2)
    found.append(pool.submit(meet, store, 2, SIZE, 60.0))
    assert len({future.result() for future in found}) == 1
