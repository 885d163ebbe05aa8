"""Tests that shared memory has no name, reaches children, and is refused if it is too large."""

from __future__ import annotations

import gc
import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from htsrl_cli.storage import memory
from htsrl_cli.storage.memory import ALIGNMENT, NotEnoughMemoryError, SharedArrays, available_memory
from htsrl_cli.workers.process import CONTEXT

LAYOUT: memory.Layout = {
    "bytes": ((3, 5), "uint8"),
    "doubles": ((7,), "float64"),
    "flags": ((2, 2), "bool"),
    "none": ((0, 4), "float32"),
}


def open_files() -> set[str]:
    """Returns the targets of this process's file descriptors."""
    links = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    return links


def test_arrays_are_zero_aligned_and_apart() -> None:
    arrays = SharedArrays(LAYOUT)
    for name, (shape, dtype) in LAYOUT.items():
        assert (arrays[name].shape, arrays[name].dtype) == (shape, np.dtype(dtype))
        assert arrays[name].ctypes.data % ALIGNMENT == 0
        assert not arrays[name].any()
    arrays["bytes"][:] = 255
    assert not arrays["doubles"].any()
    assert not arrays["flags"].any()


def test_memory_has_no_name() -> None:
    # A killed run would leave named memory behind, in /dev/shm or the temporary folder.
    before = [set(Path(folder).iterdir()) for folder in ("/dev/shm", "/tmp")]
    arrays = SharedArrays(LAYOUT)
    after = [set(Path(folder).iterdir()) for folder in ("/dev/shm", "/tmp")]
    assert not after[0] - before[0]
    assert not [path for path in after[1] - before[1] if "htsrl" in path.name]
    assert any("memfd:htsrl (deleted)" in link for link in open_files())
    del arrays


def test_memory_lives_as_long_as_an_array_of_it() -> None:
    before = open_files()
    arrays = SharedArrays(LAYOUT)
    doubles = arrays["doubles"]
    del arrays
    gc.collect()
    doubles[:] = 4.0
    assert doubles.sum() == 28
    del doubles
    gc.collect()
    assert not open_files() - before


def write_in_child(arrays: SharedArrays, control: Connection) -> None:
    arrays["doubles"][:] = arrays["doubles"] * 2
    control.send("written")
    control.recv()
    control.send((arrays["bytes"].tolist(), list(arrays)))


def test_a_spawned_child_shares_the_arrays() -> None:
    arrays = SharedArrays(LAYOUT)
    arrays["doubles"][:] = np.arange(7)
    ours, theirs = CONTEXT.Pipe()
    child = CONTEXT.Process(target=write_in_child, args=(arrays, theirs))
    child.start()
    assert ours.recv() == "written"
    assert arrays["doubles"].tolist() == [0, 2, 4, 6, 8, 10, 12]
    arrays["bytes"][:] = 7
    ours.send("look")
    assert ours.recv() == ([[7] * 5] * 3, list(LAYOUT))
    child.join()
    assert child.exitcode == 0


def test_too_large_is_refused_before_anything_is_allocated() -> None:
    before = open_files()
    free = available_memory()
    with pytest.raises(NotEnoughMemoryError) as caught:
        SharedArrays({"huge": ((2 * free,), "uint8")})
    assert caught.value.needed == -(-2 * free // ALIGNMENT) * ALIGNMENT
    assert 0 < caught.value.free < caught.value.needed
    assert not open_files() - before


def test_what_is_free_is_positive_and_within_the_machine() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= physical


def test_space_is_reserved_when_it_is_opened() -> None:
    # Memory that is only promised may fail at a page fault (SIGBUS).
    arrays = SharedArrays({"a": ((1 << 22,), "uint8")})
    blocks = [
        os.stat(f"/proc/self/fd/{link.split()[0]}").st_blocks * 512
        for link in open_files()
        if "memfd:htsrl" in link
    ]
    assert max(blocks) >= arrays["a"].nbytes
