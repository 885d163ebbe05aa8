"""Scheduling priorities of the threads and processes of a run."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from htsrl_cli.runners.loop import Run
from tests import harness
from tests.unit.test_scheduling import SHORT_NS, needs_slices, nice, slice_ns


@needs_slices
def test_workers_go_first_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[int, int]] = {}
    log_interval = Run._log_rollout

    def look(run: Run) -> None:
        log_interval(run)
        workers = {child.name(): child.pid for child in psutil.Process().children()}
        threads = {thread.name: thread.native_id or 0 for thread in threading.enumerate()}
        for name, number in {**workers, **threads}.items():
            seen[name] = slice_ns(number), nice(number)

    monkeypatch.setattr(Run, "_log_rollout", look)
    harness.run(harness.with_workers(harness.small_config("terminating", "a2c"), 2, 1, 2), tmp_path)
    usual = seen["MainThread"]
    assert usual[0] > SHORT_NS
    for name in ("executor 0", "executor 1", "actor 0"):
        assert seen[name] == (SHORT_NS, usual[1]), name
    learners = [seen[name] for name in seen if name.startswith("learner")]
    assert learners == [(usual[0], 10)] * 2
