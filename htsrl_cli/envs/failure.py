"""Errors of an environment's own code, reported with their place in the user's file."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from htsrl_cli.errors import EnvError

# What an environment's code may raise. `sys.exit` in a library raises SystemExit, and a simulator
# that handles signals itself may raise KeyboardInterrupt; htsrl's own signal handlers do not.
FAILURES = (Exception, SystemExit, KeyboardInterrupt)
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(
    sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")
)


def failure(where: str, cause: BaseException) -> EnvError:
    """Returns the error for an exception that an environment's code raised.

    The error shows only the innermost line of code that is in no library, and the exception.

    Args:
        where: the environment and the call that failed, for example `environment 3: reset()`.
        cause: the exception, with its traceback.
    """
    frames = traceback.extract_tb(cause.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    lines = traceback.format_list(own[-1:]) + traceback.format_exception_only(cause)
    return EnvError(f"{where} failed\n{''.join(lines).rstrip()}")


def _is_library(filename: str) -> bool:
    """Returns True for a file of htsrl, of an installed package, or of Python."""
    return filename.startswith((str(_PACKAGE), "<frozen ", *_LIBRARIES))
