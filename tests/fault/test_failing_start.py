"""Failing starts: a run that fails while it starts ends everything that it started."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from htsrl_cli.runners.loop import Run
from htsrl_cli.runners.run import train
from tests import harness, sections


def alive() -> set[str]:
    """Returns the names of this process's threads and of its workers."""
    processes = psutil.Process().children()
    names = {f"process {p.pid} {p.name()}" for p in processes if "spawn_main" in str(p.cmdline())}
    return names | {f"thread {thread.name}" for thread in threading.enumerate()}


@pytest.mark.parametrize("runner", ["hts", "serial", "async"])
def test_what_fails_at_the_first_checkpoint_leaves_nothing(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Run) -> None:
        raise RuntimeError("out of luck")

    config = replace(
        harness.small_config("terminating", "ppo", runner=runner),
        eval=sections.evaluation(interval=harness.STEPS_PER_ROLLOUT, episodes=1),
    )
    before = alive()
    monkeypatch.setattr(Run, "_save_checkpoint", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(config, tmp_path)
    assert alive() <= before
