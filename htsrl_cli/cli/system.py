"""Limits of the operating system that end a command, as errors that name the remedy."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from htsrl_cli.config.wording import shown
from htsrl_cli.errors import HtsrlError, RunError, Stopped, UsageError


def explained(error: OSError) -> HtsrlError | None:
    """Returns the error to report for a limit of the system; None for any other `error`."""
    if error.errno == errno.ENAMETOOLONG:
        name = os.fsdecode(error.filename or "")
        return UsageError(f"{shown(name)}: this name is too long: choose a shorter one")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RunError(
            "too many open files: raise the limit, for example with ulimit -n 1024, or give fewer "
            "actors.num_executors"
        )
    if error.errno == errno.ENOENT and "temporary directory" in str(error.strerror):
        return RunError(
            "no folder for temporary files can be written to: set TMPDIR to a folder, or raise the "
            "limit of open files (ulimit -n)"
        )
    return None


def open_standard_streams() -> None:
    """Connects standard streams that are closed (`2>&-`) to the null device.

    Otherwise the next file to be opened would get the number of the closed stream, and what worker
    processes write to standard error would go into this file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given out first, so this is `number`.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


@contextmanager
def exits_as_errors() -> Iterator[None]:
    """Turns `sys.exit` of other code in the `with` block into an error, whatever its exit code.

    Environments, networks and algorithms of users and packages run in this process, too. Without
    this function, `sys.exit(0)` in one of them would look like the end of a complete run.
    """
    try:
        yield
    except Stopped:
        raise
    except SystemExit as error:
        from htsrl_cli.envs.failure import failure

        raise failure(
            "code of a user or a package called sys.exit, so the command", error
        ) from None


def check_current_folder() -> None:
    """Checks that the current folder exists.

    Raises:
        UsageError: the folder has been deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the current folder cannot be used ({error.strerror}): change to another folder"
        ) from error
