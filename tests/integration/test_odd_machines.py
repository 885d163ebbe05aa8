"""Commands on machines with limits: one line that helps, or a run that does not mind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Htsrl
from tests.harness import command, environment
from tests.integration.refusals import assert_refused

LONG = "x" * 300
RUN = (
    "train",
    "env=synthetic/count",
    "total_steps=1024",
    "actors.num_envs=2",
    "actors.num_executors=2",
    "actors.num_actors=1",
    "runner.sync_interval=64",
    "learner.num_threads=1",
    "hydra.run.dir=run",
)


def run_in(folder: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `htsrl WORDS` in a folder after the commands in a shell script."""
    return subprocess.run(
        ["bash", "-c", f'{script}; exec "$@"', "bash", *command(*words)],
        cwd=folder,
        env=environment(),
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["train", f"hydra.run.dir={LONG}"],
        ["train", f"hydra.run.dir=runs/{LONG}"],
        ["train", f"resume={LONG}"],
        ["train", "resume=auto", f"hydra.run.dir={LONG}"],
        ["train", "-m", "seed=1,2", f"hydra.sweep.dir={LONG}"],
        ["train", f"--config-dir={LONG}"],
        ["train", f"--config-name={LONG}"],
        ["eval", f"checkpoint={LONG}"],
        ["bench", f"hydra.run.dir={LONG}"],
        ["list", f"--config-dir={LONG}"],
        ["report", LONG],
    ],
    ids=lambda words: words[0] + words[-1].partition("=")[0],
)
def test_long_names_are_refused(htsrl: Htsrl, tmp_path: Path, words: list[str]) -> None:
    run = htsrl(*words)
    assert_refused(run)
    assert "xxx" in run.stderr
    assert "too long" in run.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "words", [["train"], ["train", "-m", "seed=1,2"], ["eval", "checkpoint=x"], ["bench"], ["list"]]
)
def test_deleted_folder_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    assert_refused(run_in(folder, 'rmdir "$PWD"', *words), "change to another folder")


@pytest.mark.parametrize("limit", [10, 24])
def test_few_open_files(tmp_path: Path, limit: int) -> None:
    run = run_in(tmp_path, f"ulimit -n {limit}", *RUN)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    *logged, line = run.stderr.splitlines()
    assert all(" INFO: " in entry for entry in logged)
    assert line.startswith("htsrl: error: ")
    assert "ulimit -n" in line


def test_file_in_place_of_a_folder(htsrl: Htsrl, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(htsrl("train", "--config-dir=file"), "there is no such folder")
    assert_refused(htsrl("train", "hydra.run.dir=file"), "choose another folder")
    assert_refused(htsrl("eval", "checkpoint=file/x"), "does not exist")


def test_run_needs_neither_home_nor_temporary_folder(tmp_path: Path) -> None:
    run = run_in(tmp_path, "unset HOME; export TMPDIR=/nowhere", *RUN)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "summary.json").is_file()


def test_run_needs_no_dev_shm(tmp_path: Path) -> None:
    mount = "mount -t tmpfs -o ro none /dev/shm"
    if (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a private /dev/shm cannot be mounted here")
    words = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command(*RUN)]
    run = subprocess.run(
        words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
