"""Back-pressure: while the learner is slow, the queue is full, and all environments wait."""

from __future__ import annotations

import fcntl
import struct
import termios
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from htsrl_cli.config.sections import AsyncRunnerConfig, TrainConfig
from htsrl_cli.learning.learner import Learner
from htsrl_cli.runners.async_run import AsyncRun
from htsrl_cli.sampling.schedule import SCHEDULE_FILE, Schedule
from htsrl_cli.workers.process import Pipe
from tests import harness
from tests.fault.processes import wait_until

TIMEOUT_S = 1.0
# Longer than the timeout of every worker, and than the period in which the watcher looks.
SLOW_S = 2.5 * TIMEOUT_S
NUM_UPDATES = 4


def slow_config(num_executors: int, num_actors: int, host: str = "process") -> TrainConfig:
    config = harness.small_config("terminating", "impala", runner="async")
    config = harness.with_workers(config, num_executors, num_actors, 1)
    assert isinstance(config.runner, AsyncRunnerConfig)
    return replace(
        config,
        env=replace(config.env, step_timeout_s=TIMEOUT_S),
        actors=replace(config.actors, timeout_s=TIMEOUT_S, host=host),
        runner=replace(config.runner, unrolls_per_update=8, spare_unrolls=4, record=True),
        total_steps=NUM_UPDATES * 8 * harness.SYNC_INTERVAL,
    )


def num_waiting(pipe: Pipe) -> int:
    """Returns how many numbers are in a pipe."""
    size = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", size)[0]) // 4


class SlowLearner:
    """A patch: every update waits until all buffers are full, and then for `SLOW_S` seconds.

    Attributes:
        kept: for each update, the memory of the workers in bytes.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.kept: list[int] = []
        init, update = AsyncRun.__init__, Learner.update

        def remember(run: AsyncRun, *arguments: object) -> None:
            self._run = run
            init(run, *arguments)  # type: ignore[arg-type]

        def wait(*arguments: object) -> dict[str, float]:
            self._wait_with_full_queue()
            return update(*arguments)  # type: ignore[arg-type]

        patch.setattr(AsyncRun, "__init__", remember)
        patch.setattr(Learner, "update", wait)

    def _wait_with_full_queue(self) -> None:
        run = self._run
        queue, board = run._queue, run._collector.board
        num_buffers = len(queue.owners)

        def is_full() -> bool:
            return num_waiting(queue.full) + len(run._arrived) == num_buffers

        wait_until(is_full, "a full queue")
        # A second actor may start later than the run.
        wait_until(lambda: board.busy_s().all() and not board.since().any(), "idle workers")
        passes, busy_s = board.num_passes(), board.busy_s()
        time.sleep(SLOW_S)
        assert is_full()
        assert num_waiting(queue.free) == 0
        assert board.num_passes() == passes, "no environment moves"
        assert np.array_equal(board.busy_s(), busy_s), "no worker does anything"
        workers = psutil.Process().children(recursive=True)
        self.kept.append(sum(worker.memory_info().rss for worker in workers))


@pytest.mark.parametrize(
    ("num_executors", "num_actors", "host"),
    [
        (2, 1, "process"),
        pytest.param(4, 2, "process", marks=pytest.mark.slow),
        pytest.param(1, 2, "thread", marks=pytest.mark.slow),
    ],
)
def test_environments_wait_for_a_slow_learner(
    num_executors: int,
    num_actors: int,
    host: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowLearner(monkeypatch)
    # The watcher reports no worker, so the run ends well.
    harness.run(slow_config(num_executors, num_actors, host), tmp_path)
    assert len(slow.kept) == NUM_UPDATES
    assert max(slow.kept[1:]) < 1.1 * slow.kept[0]
    # The queue was full of 20 unrolls of version 0; updates 1, 2 and 3 have used them.
    assert Schedule.load(tmp_path / SCHEDULE_FILE).max_lag == 3
