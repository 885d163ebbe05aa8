"""Tests of the checkpoints in a run's folder: kept, pruned, and whole after kills."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from htsrl_cli import durable
from htsrl_cli.checkpoints import file as checkpoint_module
from htsrl_cli.checkpoints.file import MAGIC, Checkpoint, load_checkpoint
from htsrl_cli.checkpoints.store import CheckpointStore, find_checkpoint, open_checkpoint
from htsrl_cli.errors import CheckpointError
from tests.unit.checkpoint_files import names, steps, tiny


@pytest.fixture(params=["anonymous", "renamed"])
def technique(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with each of the two ways to create a file atomically."""
    if request.param == "renamed":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return str(request.param)


def test_find_takes_a_file_as_named_and_the_newest_of_a_folder(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for env_steps in (10, 200, 30):
        store.save(env_steps, None, tiny())
    assert find_checkpoint(tmp_path) == store.path(200)
    assert find_checkpoint(store.path(10)) == store.path(10)
    with pytest.raises(CheckpointError, match=f"is no run folder: give {tmp_path}, or a file"):
        find_checkpoint(tmp_path / "checkpoints")


def test_find_passes_over_damaged_files_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for env_steps in (10, 20, 30):
        store.save(env_steps, None, tiny())
    store.path(30).write_bytes(b"")
    store.path(20).write_bytes(store.path(20).read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path) == store.path(10)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "step_000000000030" in caplog.text
    assert "step_000000000020" in caplog.text
    # A user who names a damaged file must get an error, not another file.
    assert find_checkpoint(store.path(20)) == store.path(20)
    with pytest.raises(CheckpointError):
        load_checkpoint(store.path(20))


def test_find_without_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000000000001.ckpt").write_bytes(MAGIC)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        find_checkpoint(tmp_path)


def test_the_newest_and_the_best_are_kept(tmp_path: Path, technique: str) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    kept = []
    for env_steps, metric in enumerate([float("nan"), 1.0, 5.0, None, 5.0, 2.0, None]):
        assert store.save(env_steps, metric, tiny(env_steps))
        kept.append(steps(tmp_path))
    # Steps 2 and 4 have the same metric; the earlier one stays.
    assert kept == [[0], [0, 1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    assert load_checkpoint(store.path(2)).meta == {"env_steps": 2, "metric": 5.0}


def test_unrated_checkpoints_wait_for_their_metric(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for env_steps in range(1, 6):
        store.save(env_steps, 9.0, tiny(), is_final=False)
    assert steps(tmp_path) == store.waiting == [1, 2, 3, 4, 5]
    for env_steps, metric in ((1, 3.0), (2, 7.0), (3, 5.0), (4, None)):
        store.set_metric(env_steps, metric)
    assert (steps(tmp_path), store.waiting) == ([2, 5], [5])
    store = CheckpointStore(tmp_path, keep=1)
    store.forget_metrics()
    store.save(6, None, tiny(), is_final=False)
    assert store.waiting == [2, 5, 6]
    for env_steps, metric in ((2, 7.0), (5, 8.0), (6, 1.0)):
        store.set_metric(env_steps, metric)
    assert steps(tmp_path) == [5, 6]


def test_the_best_is_remembered_by_a_new_store(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for env_steps, metric in ((1, 9.0), (2, 3.0)):
        store.save(env_steps, metric, tiny())
    store = CheckpointStore(tmp_path, keep=1)
    store.save(3, 4.0, tiny())
    assert steps(tmp_path) == [1, 3]
    store.save(4, 10.0, tiny())
    assert steps(tmp_path) == [4]


def test_damaged_files_are_not_counted_as_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for env_steps in (1, 2):
        store.save(env_steps, None, tiny())
    store.path(2).write_bytes(b"damaged")
    CheckpointStore(tmp_path, keep=2).save(3, None, tiny())
    assert steps(tmp_path) == [1, 3]


def test_discarding_the_future_and_saving_it_again(tmp_path: Path, technique: str) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    for env_steps in (10, 20, 30):
        store.save(env_steps, float(env_steps), tiny(env_steps))
    store.discard_after(10)
    assert steps(tmp_path) == [10]
    store.path(20).write_bytes(b"damaged")
    assert store.save(20, 0.0, tiny(21))
    assert store.save(20, 0.0, tiny(22))
    assert load_checkpoint(store.path(20)).arrays["value"] == 22
    assert steps(tmp_path) == [10, 20]


def test_discarded_files_do_not_count_as_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for env_steps, metric in ((10, 1.0), (20, 9.0)):
        store.save(env_steps, metric, tiny())
    store.discard_after(10)
    store.save(15, 0.0, tiny())
    assert steps(tmp_path) == [10, 15]


def test_saving_leaves_the_given_checkpoint_alone(tmp_path: Path) -> None:
    checkpoint = tiny()
    CheckpointStore(tmp_path, keep=1).save(1, 2.0, checkpoint)
    assert checkpoint.meta == {}


def fail_after(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every file of the store fail like a full disk after `limit` bytes."""
    write_frame = checkpoint_module._write_frame

    def failing(file: BinaryIO, payload: bytes) -> None:
        write_frame(file, payload[:limit])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_module, "_write_frame", failing)


@pytest.mark.parametrize("env_steps", [10, 20], ids=["same name", "new name"])
def test_a_failing_write_keeps_the_previous_files(
    env_steps: int,
    technique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(10, 1.0, tiny(1))
    with monkeypatch.context() as context:
        fail_after(100, context)
        assert not store.save(env_steps, 2.0, tiny(2))
    assert names(tmp_path) == ["step_000000000010.ckpt"]
    assert load_checkpoint(store.path(10)).arrays["value"] == 1
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "No space left on device; previous checkpoints are kept" in record.getMessage()
    assert store.save(30, 0.0, tiny(3)), "the store goes on once there is space again"
    assert steps(tmp_path) == [10, 30], "the failed one does not count as the best"


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """Mounts a file system of 256 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_keeps_the_previous_files(
    small_disk: Path, technique: str, caplog: pytest.LogCaptureFixture
) -> None:
    def checkpoint(size: int) -> Checkpoint:
        noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        return Checkpoint({"noise": noise}, {})

    store = CheckpointStore(small_disk, keep=1)
    assert store.save(1, None, checkpoint(100_000))
    assert not store.save(2, None, checkpoint(400_000))
    assert "No space left on device" in caplog.text
    assert names(small_disk) == ["step_000000000001.ckpt"]
    assert find_checkpoint(small_disk) == store.path(1)
    assert load_checkpoint(store.path(1)).arrays["noise"].size == 100_000
    assert store.save(3, None, checkpoint(100_000)), "what was written in vain is free again"
    assert steps(small_disk) == [3]


def test_leftovers_are_removed_when_a_store_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / f"step_000000000001.ckpt{durable.TEMPORARY_SUFFIX}").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"the user's own")
    CheckpointStore(tmp_path, keep=1).save(2, None, tiny())
    assert names(tmp_path) == ["notes.txt", "step_000000000002.ckpt"]


def test_no_support_for_anonymous_files_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def without_tmpfile(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", without_tmpfile)
    store = CheckpointStore(tmp_path, keep=1)
    assert store.save(1, None, tiny(5))
    assert load_checkpoint(store.path(1)).arrays["value"] == 5
    assert names(tmp_path) == ["step_000000000001.ckpt"]


SAVE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint
from htsrl_cli.checkpoints.state import State, split
from htsrl_cli.checkpoints.store import CheckpointStore, find_checkpoint, open_checkpoint

run_dir = Path(sys.argv[1])
store = CheckpointStore(run_dir, keep=2)
done = load_checkpoint(find_checkpoint(run_dir)).meta["env_steps"]
store.discard_after(done)
noise = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
for env_steps in range(done, done + 1_000_000):
    assert store.save(env_steps, float(env_steps % 7), Checkpoint({"noise": noise}, {}))
    print(env_steps, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs anonymous files")
def test_kills_in_the_middle_of_saving_leave_only_whole_files(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for env_steps in (0, 1):
        store.save(env_steps, None, tiny())
    rng = random.Random(0)
    reached = 1
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with child, contextlib.closing(child.stdout):  # type: ignore[type-var]
            assert child.stdout is not None
            confirmed = int(child.stdout.readline())
            time.sleep(rng.random() * 0.05)
            child.send_signal(signal.SIGKILL)
            confirmed = max([confirmed, *map(int, child.stdout.read().split())])
        assert child.returncode == -signal.SIGKILL
        kept = steps(tmp_path)  # fails for the name of a temporary file
        for env_steps in kept:
            load_checkpoint(store.path(env_steps))
        assert find_checkpoint(tmp_path) == store.path(kept[-1])
        assert confirmed <= kept[-1] <= confirmed + 1, "a save that was reported is on the disk"
        assert len(kept) <= 4, "at most the newest two, the best, and the one being added"
        reached = max(reached, kept[-1])
    assert reached > 12


def test_a_store_deletes_only_files_of_its_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, None, tiny())
    # Another run has taken the folder over.
    other = CheckpointStore(tmp_path, keep=5)
    other.save(7, None, tiny())
    store.save(9, None, tiny())
    assert steps(tmp_path) == [7, 9]


def add_odd_entries(folder: Path) -> list[str]:
    """Puts entries that are no files into a folder of checkpoints; returns their names."""
    (folder / "step_000000000900.ckpt").mkdir()
    (folder / "step_000000000900.ckpt" / "notes").touch()
    (folder / "step_000000000700.ckpt.part").mkdir()
    os.mkfifo(folder / "step_000000000901.ckpt")
    (folder / "step_000000000902.ckpt").symlink_to("step_000000000902.ckpt")
    (folder / "step_000000000903.ckpt").symlink_to("/dev/zero")
    return [
        f"step_000000000{number}"
        for number in ("700.ckpt.part", "900.ckpt", "901.ckpt", "902.ckpt", "903.ckpt")
    ]


def test_entries_that_are_no_files_are_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(10, None, tiny())
    odd = add_odd_entries(tmp_path / "checkpoints")
    assert find_checkpoint(tmp_path) == store.path(10)
    for name in odd:
        assert caplog.text.count(name) == (not name.endswith(".part")), name
    caplog.clear()
    store = CheckpointStore(tmp_path, keep=1)
    assert all(name in caplog.text for name in odd)
    caplog.clear()
    store.discard_after(10)
    assert store.save(20, None, tiny(20))
    assert store.save(30, None, tiny(30))
    assert not caplog.records
    assert names(tmp_path) == ["step_000000000030.ckpt", *odd]
    # What has the name of the next checkpoint is no reason to end the run.
    assert not store.save(900, None, tiny())
    assert "cannot save" in caplog.text
    assert names(tmp_path) == ["step_000000000030.ckpt", *odd]
    with pytest.raises(CheckpointError, match=r"901\.ckpt is no regular file"):
        load_checkpoint(tmp_path / "checkpoints" / "step_000000000901.ckpt")


def test_what_cannot_be_deleted_does_not_stop_the_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for env_steps in (1, 2, 3):
        store.save(env_steps, None, tiny())
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if "000001" in path.name:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    store = CheckpointStore(tmp_path, keep=1)
    store.forget_metrics()
    for env_steps in (1, 2, 3):
        store.set_metric(env_steps, None)
    assert steps(tmp_path) == [1, 3]
    assert "cannot delete" in caplog.text
    assert "cannot save" not in caplog.text


def test_reading_beside_a_pruning_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CheckpointStore(tmp_path, keep=1).save(0, None, tiny())
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER.replace("keep=2", "keep=1"), str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    seen: set[Path] = set()
    num_reads = 0
    try:
        # Without pruning meanwhile, the test would prove nothing.
        while num_reads < 1500 or len(seen) <= 20:
            assert saver.poll() is None
            seen.add(open_checkpoint(tmp_path)[0])
            num_reads += 1
    finally:
        saver.kill()
        saver.wait()
    assert not caplog.records
