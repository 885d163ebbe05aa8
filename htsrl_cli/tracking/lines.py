"""A file of JSON lines, which a resume cuts back."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from htsrl_cli.durable import write_durably


class LineFile:
    """Appends lines, each by a single write: a kill leaves whole lines.

    Args:
        path: created where it does not exist.
        keep: whether a line stays; an unfinished one at the end does not.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        content = path.read_bytes() if path.exists() else b""
        kept = b"".join(line for line in content.splitlines(keepends=True) if _stays(line, keep))
        if not content.startswith(kept):
            write_durably(path, lambda file: file.write(kept))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._file.truncate(len(kept))

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


def _stays(line: bytes, keep: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether `line` is a whole line of ours that is kept."""
    try:
        return line.endswith(b"\n") and keep(json.loads(line))
    except (ValueError, LookupError, TypeError):
        return False


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
