"""The lock of a run folder, which keeps two processes from writing to one folder.

The lock belongs to the file `.lock`, and checkpoints and the summary are written by path. If the
folder is deleted or moved while a run trains, its path may lead to another run. `HeldFolder.check`
notices this, because the file in the folder is then not the locked one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from htsrl_cli.errors import ConfigError, RunError

logger = logging.getLogger(__name__)

_LOCK_FILE = ".lock"
_LOCK_PERIOD_S = 0.2
# errno values of flock(2) on file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class HeldFolder:
    """A run folder whose lock this process holds.

    Args:
        run_dir: the run's folder.
        lock: the locked file, open.
    """

    def __init__(self, run_dir: Path, lock: IO[str]) -> None:
        self._run_dir = run_dir
        self._lock = lock

    def check(self) -> None:
        """Checks that the folder's path still leads to the locked folder; call it before a write.

        Raises:
            RunError: the folder has been deleted, moved or replaced.
        """
        try:
            found = os.stat(self._run_dir / _LOCK_FILE)
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None or not os.path.samestat(found, os.fstat(self._lock.fileno())):
            raise RunError(
                f"the run folder {self._run_dir} has been deleted, moved or replaced (its file "
                f"{_LOCK_FILE} is another one), so this run has stopped and writes nothing more "
                "there; if the folder was moved, resume the run in it"
            )


@contextmanager
def hold_folder(run_dir: Path, patience_s: float) -> Iterator[HeldFolder]:
    """Locks `run_dir` in a `with` block, so that no other process trains in it meanwhile.

    Waits for the lock if another process holds it, and logs this. On a file system without locks,
    logs a warning and does not lock.

    Raises:
        ConfigError: another process still holds the lock after `patience_s` seconds.
        RunError: the folder was deleted, moved or replaced meanwhile.
    """
    # Network file systems emulate flock by POSIX record locks, which need a file open for writing.
    with (run_dir / _LOCK_FILE).open("a") as file:
        # An environment may fork. The lock is held until every copy of the file is closed, so a
        # child that outlives the run would keep it.
        os.register_at_fork(after_in_child=file.close)
        deadline, is_waiting = time.monotonic() + patience_s, False
        while not _try_lock(file):
            if not is_waiting:
                logger.info("another process is training in %s: waiting for it to end", run_dir)
            is_waiting = True
            if time.monotonic() > deadline:
                remedy = "another process is training here: stop it, or choose another folder"
                raise ConfigError("hydra.run.dir", run_dir, remedy)
            time.sleep(_LOCK_PERIOD_S)
        held = HeldFolder(run_dir, file)
        held.check()
        yield held


@contextmanager
def usable(run_dir: Path) -> Iterator[None]:
    """Turns an `OSError` in the `with` block for a path in `run_dir` into a `RunError`.

    Checkpoints, lines of metrics and policies that cannot be written do not raise; this is for
    files without which a run cannot go on.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(error.filename, str | os.PathLike):
            raise
        if not Path(error.filename).absolute().is_relative_to(run_dir.absolute()):
            raise
        raise RunError(
            f"the run folder cannot be used: {os.fspath(error.filename)}: {error.strerror}: fix "
            "the cause, then resume"
        ) from error


def _try_lock(file: IO[str]) -> bool:
    """Locks a file; returns False if another process holds the lock.

    On a file system without locks, it logs a warning and returns True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "cannot lock %s (%s): do not start a second run in this folder",
            file.name,
            error.strerror,
        )
    return True
