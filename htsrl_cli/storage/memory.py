"""NumPy arrays in anonymous shared memory.

The memory has no name: it is a memfd on Linux, and an unlinked temporary file on other systems.
Spawned processes inherit its descriptor. The kernel frees the memory when the last process that
uses it ends or is killed. The memory does not count against /dev/shm, which is small in
containers.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from htsrl_cli.cgroups import ROOT, group_folders

Array = npt.NDArray[Any]
# Shape and dtype.
ArrayType = tuple[tuple[int, ...], str]
Layout = Mapping[str, ArrayType]

# Bytes of a cache line; also a good alignment for vector loads and oneDNN.
ALIGNMENT = 64
# Files with the limit and the used bytes of a control group, and the line of memory.stat with the
# bytes of cached files that the kernel frees first: in versions 2 and 1 of control groups.
_FILES_OF_GROUP = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class NotEnoughMemoryError(OSError):
    """The error raised when arrays need more memory than is free.

    Attributes:
        needed: bytes that the arrays need.
        free: bytes that are free.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(errno.ENOMEM, f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} free")
        self.needed = needed
        self.free = free


class SharedArrays(dict[str, Array]):
    """Zero-filled arrays by name, shared with the spawned processes to which they are passed.

    Args:
        layout: shape and dtype of every array.

    Raises:
        NotEnoughMemoryError: the arrays exceed the free memory; nothing has been allocated.
        OSError: the system refuses to allocate the memory.
    """

    def __init__(self, layout: Layout) -> None:
        size = max(1, sum(_padded(shape, dtype) for shape, dtype in layout.values()))
        free = available_memory()
        if size > free:
            raise NotEnoughMemoryError(size, free)
        self._open(_anonymous_file(size), layout)

    def _open(self, fd: int, layout: Layout) -> None:
        super().__init__()
        self._fd = fd
        self._layout = dict(layout)
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        offset = 0
        for name, (shape, dtype) in layout.items():
            flat = np.frombuffer(self._map, dtype, math.prod(shape), offset)
            self[name] = flat.reshape(shape)
            offset += _padded(shape, dtype)

    @classmethod
    def _attach(cls, fd: Any, layout: Layout) -> SharedArrays:
        arrays = cls.__new__(cls)
        arrays._open(fd.detach(), layout)
        return arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedArrays._attach, (reduction.DupFd(self._fd), self._layout)

    def __del__(self) -> None:
        # The mapping has its own descriptor and lives as long as an array that views it.
        if hasattr(self, "_fd"):
            os.close(self._fd)


def available_memory(root: Path = ROOT) -> int:
    """Returns how many bytes can be allocated without swapping, within the control groups' limits.

    On systems without /proc/meminfo, all physical memory counts as free.

    Args:
        root: the folder that contains /proc and the mounted file systems.
    """
    free = [_meminfo_available(root)]
    for group in group_folders("memory", root):
        for names in _FILES_OF_GROUP:
            # Without a limit, a file does not exist or contains `max`.
            with suppress(OSError, ValueError):
                free.append(_free_in_group(group, *names))
    return max(0, min(free))


def _free_in_group(group: Path, limit: str, used: str, cached: str) -> int:
    """Returns how many bytes are left to a control group; cached files count as free."""
    lines = (group / "memory.stat").read_text().splitlines()
    fields = dict(line.split() for line in lines)
    left = int((group / limit).read_text()) - int((group / used).read_text())
    return left + int(fields[cached])


def _meminfo_available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _padded(shape: tuple[int, ...], dtype: str) -> int:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


def _anonymous_file(size: int) -> int:
    """Returns the descriptor of a new unnamed file of `size` bytes.

    Where the system can, it reserves the space, so that a later access does not fail with SIGBUS.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("htsrl", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
