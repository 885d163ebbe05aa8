"""A file of JSON lines in order of `env_steps`, which a resume cuts back."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


class LineFile:
    """Appends lines, each by a single write: a kill leaves whole lines.

    Args:
        path: created where it does not exist.
        env_steps: lines after this are removed, and so is an unfinished one at the end.
    """

    def __init__(self, path: Path, env_steps: int) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._file.truncate(_end_of_lines(path, env_steps))

    def append(self, line: Mapping[str, float | None]) -> None:
        """Adds a line; numbers that JSON does not have (NaN, infinities) become null.

        Raises:
            OSError: there is no space for it; the file ends with the line before.
        """
        plain = {name: _finite(value) for name, value in line.items()}
        content = json.dumps(plain, allow_nan=False).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        if self._file.write(content) != len(content):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # A checkpoint that survives a loss of power must not outlive the lines before it.
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _end_of_lines(path: Path, env_steps: int) -> int:
    """Size of the part of the file that is whole lines up to `env_steps`."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n") or _env_steps(line) > env_steps:
                break
            end += len(line)
    return end


def _env_steps(line: bytes) -> float:
    """What a line says, infinity if it is no line of ours."""
    try:
        return int(json.loads(line)["env_steps"])
    except (ValueError, LookupError, TypeError):
        return math.inf


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
