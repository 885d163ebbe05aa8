"""Tests of what a job writes before it trains: the resolved configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from htsrl_cli.cli.job import write_config
from tests.harness import environment, small_config

# Composition opens files, too, so it comes before the tests kill anything.
CONFIG = small_config("terminating", "ppo")


def write(run_dir: Path, seed: int) -> None:
    write_config(replace(CONFIG, seed=seed), run_dir)


def test_the_configuration_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    fsync = os.fsync
    synced: list[tuple[int, int]] = []

    def record(descriptor: int) -> None:
        """Records the file that is synced, and the file that has the name at that time."""
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "config.yaml").stat().st_ino))

    monkeypatch.setattr(os, "fsync", record)
    old = (tmp_path / "config.yaml").stat().st_ino
    write(tmp_path, 2)
    new = (tmp_path / "config.yaml").stat().st_ino
    assert synced == [(new, old), (tmp_path.stat().st_ino, new)]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.test_job import write

left = int(sys.argv[2])

def kill(event, args):
    global left
    if event in ("open", "os.link", "os.rename", "os.remove"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
write(Path(sys.argv[1]), 2)
os._exit(0)
"""


def test_a_kill_at_any_moment_leaves_the_old_configuration_or_the_new_one(tmp_path: Path) -> None:
    seeds = []
    for moment in range(50):
        write(tmp_path, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(moment)]
        ended = subprocess.run(command, env=environment(), check=False).returncode
        seeds.append(OmegaConf.load(tmp_path / "config.yaml").seed)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert 2 < len(seeds) < 50
    assert seeds == sorted(seeds)
    assert set(seeds) == {1, 2}
