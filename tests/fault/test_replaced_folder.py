"""A run folder that is deleted or moved while a run trains in it: nothing reaches its successor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.fault.conftest import TOTAL, TOTAL_STEPS, Train
from tests.fault.processes import Run, wait_until
from tests.harness import Fingerprint

REPLACED = "run has been deleted, moved or replaced"


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize("how", ["deleted", pytest.param("moved", marks=pytest.mark.slow)])
def test_two_runs_do_not_mix_in_one_folder(
    how: str, train: Train, start: Callable[..., Run], tmp_path: Path, uninterrupted: Fingerprint
) -> None:
    first = train(f"total_steps={2 * TOTAL_STEPS}", "seed=5")
    first.wait_for_steps(700)
    psutil.Process(first.process.pid).suspend()
    if how == "deleted":
        shutil.rmtree(first.folder)
    else:
        first.folder.rename(tmp_path / "old")
    second = train(TOTAL)
    second.wait_for_steps(700)
    psutil.Process(second.process.pid).suspend()
    before = checkpoints(second.folder)
    psutil.Process(first.process.pid).resume()
    assert first.wait() == 1, first.stderr
    assert REPLACED in first.stderr.splitlines()[-1]
    assert "Traceback" not in first.stderr
    assert checkpoints(second.folder) == before
    assert not (second.folder / "summary.json").exists()
    psutil.Process(second.process.pid).resume()
    assert second.wait() == 0, second.stderr
    assert second.fingerprint() == uninterrupted
    if how == "moved":
        resumed = start("train", "resume=old")
        resumed.folder = tmp_path / "old"
        assert resumed.wait() == 0, resumed.stderr


def test_deleted_folder_ends_a_run(train: Train) -> None:
    run = train(TOTAL)
    run.wait_for_steps(700)

    def is_deleted() -> bool:
        # The run may add a file while the folder is being deleted.
        shutil.rmtree(run.folder, ignore_errors=True)
        return not run.folder.exists()

    wait_until(is_deleted, "the folder's end")
    assert run.wait() == 1, run.stderr
    assert REPLACED in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert not run.folder.exists()


def test_checkpoint_of_another_run_is_not_resumed(
    train: Train, start: Callable[..., Run], tmp_path: Path
) -> None:
    for seed in (1, 2):
        run = train("total_steps=640", f"seed={seed}")
        assert run.wait() == 0, run.stderr
        run.folder.rename(tmp_path / f"seed{seed}")
    name = "step_000000000640.ckpt"
    shutil.copy(tmp_path / "seed1/checkpoints" / name, tmp_path / "seed2/checkpoints" / name)
    before = (tmp_path / "seed2" / "config.yaml").read_bytes()
    for source in ("seed2", f"seed2/checkpoints/{name}"):
        resumed = start("train", f"resume={source}", "total_steps=1280")
        assert resumed.wait() == 2, resumed.stderr
        (line,) = resumed.stderr.splitlines()
        assert f"seed2/checkpoints/{name} belongs to another run: its seed is 1" in line
        assert "seed2/config.yaml has 2" in line
    assert (tmp_path / "seed2" / "config.yaml").read_bytes() == before
