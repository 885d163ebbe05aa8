"""Failing starts: a run that fails while it starts ends everything that it started."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from htsrl_cli.durable import write_durably
from htsrl_cli.errors import RunError
from htsrl_cli.runners.folder import usable
from htsrl_cli.runners.loop import Run
from htsrl_cli.runners.run import train
from tests import harness, sections
from tests.conftest import Htsrl


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


@pytest.mark.parametrize("name", [".lock", "config.yaml", "train.log"])
def test_a_file_that_cannot_be_written_at_the_start_is_named(
    name: str, htsrl: Htsrl, tmp_path: Path
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    run = htsrl("train", "env=synthetic/count", "runner=serial", "hydra.run.dir=run")
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    error = run.stderr.splitlines()[-1]
    assert error.startswith("htsrl: error: the run folder cannot be used: ")
    assert f"run/{name}: Is a directory" in error


def test_the_error_of_a_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with pytest.raises(RunError, match=r"run/a: No space left on device"), usable(run_dir):
        write_durably(run_dir / "a", lambda file: file.write(b"content"))
