"""Atomic file writes: a file appears complete or not at all, even if the process is killed.

On Linux, the content is written to an anonymous file (`O_TMPFILE`) and synced to disk. The file
gets its name afterwards, so a kill leaves nothing behind. If a file is replaced, or if the file
system has no anonymous files, the new file first has a temporary name and is then renamed. A kill
can leave this temporary file behind; `remove_leftovers` deletes it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".part"
# errno values that open(2) sets if the kernel or the file system does not support O_TMPFILE.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Creates or replaces the file `path` atomically.

    An existing file keeps its content until the new content is on disk.

    Args:
        write: a function that gets the open file and writes the content to it.

    Raises:
        OSError: the content could not be written (an existing file is then unchanged), or the new
            name could not be synced to disk. Its `filename` is `path`.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            anonymous = _open_anonymous(path.parent)
            if anonymous is None:
                _write_and_rename(path, write)
            else:
                _write_and_link(anonymous, path, folder, write)
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # A failed write, for example to a full disk, names no file, or a temporary one.
        error.filename, error.filename2 = str(path), None
        raise


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files that killed processes left in `folder`."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if path.is_dir() and not path.is_symlink():
            logger.warning("ignored %s, which is a folder: move it away", path)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Syncs `folder` to disk, so that creations and deletions in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_anonymous(folder: Path) -> int | None:
    """Opens an anonymous file in `folder`; returns its descriptor, or None if not supported."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise


def _write_and_link(
    descriptor: int, path: Path, folder: int, write: Callable[[BinaryIO], object]
) -> None:
    with open(descriptor, "w+b") as file:
        _write_through(file, write)
        # The path in /proc is a symbolic link to the anonymous file. Given a directory descriptor,
        # Python calls linkat with AT_SYMLINK_FOLLOW; plain link(2) would not follow the link.
        nameless = f"/proc/self/fd/{file.fileno()}"
        try:
            os.link(nameless, path.name, dst_dir_fd=folder)
        except FileExistsError:
            # linkat cannot replace an existing file, but a rename can.
            temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
            temporary.unlink(missing_ok=True)
            os.link(nameless, temporary.name, dst_dir_fd=folder)
            try:
                os.replace(temporary, path)
            except OSError:
                temporary.unlink()
                raise


def _write_and_rename(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with open(temporary, "w+b") as file:
            _write_through(file, write)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_through(file: BinaryIO, write: Callable[[BinaryIO], object]) -> None:
    write(file)
    file.flush()
    os.fsync(file.fileno())
