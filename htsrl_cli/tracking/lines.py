"""The file `metrics.jsonl`: reading its lines and appending new ones."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from htsrl_cli.durable import write_durably
from htsrl_cli.tracking.metric_names import EVAL_RETURN

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class LineFile:
    """A file of JSON lines.

    One system call writes a whole line, so a kill leaves only whole lines.

    Args:
        path: the file; created if it does not exist.
        keep: a function that returns True for each existing line to keep. Other lines, and lines
            that are incomplete or not valid JSON, are removed from the file.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        content = path.read_bytes() if path.exists() else b""
        kept = b"".join(line for line in content.splitlines(keepends=True) if _stays(line, keep))
        if not content.startswith(kept):
            write_durably(path, lambda file: file.write(kept))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._file.truncate(len(kept))

    def append(self, line: Mapping[str, Any]) -> None:
        """Appends a line and syncs it to disk.

        Numbers that JSON lacks (NaN, infinities) become null.

        Raises:
            OSError: the line cannot be written. If only a part of it fits on a full disk, this part
                is removed.
        """
        plain = {name: _finite(value) for name, value in line.items()}
        content = json.dumps(plain, allow_nan=False).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        if self._file.write(content) != len(content):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # If a checkpoint survives a power loss, the lines before it must survive, too.
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of `metrics.jsonl`; an empty list if there is no file.

    The run may still be writing to the file. Logs a warning if it skips damaged lines.
    """
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    texts = path.read_bytes().split(b"\n")[:-1]
    lines = [line for text in texts if (line := _parsed(text)) and _is_whole(line)]
    if num_damaged := len(texts) - len(lines):
        plural = "s" if num_damaged > 1 else ""
        logger.warning("%s: skipped %d damaged line%s", path, num_damaged, plural)
    return lines


def training_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of `metrics.jsonl`, without the lines of evaluated policies."""
    return [line for line in read_lines(run_dir) if EVAL_RETURN not in line]


def _parsed(text: bytes) -> dict[str, Any]:
    """Returns the values of a line; an empty dict if it holds anything but a JSON object."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Returns True for a line with the values that a resume and a report need."""
    if type(line.get("env_steps")) is not int:
        return False
    if EVAL_RETURN not in line:
        return True
    score, num_games = line[EVAL_RETURN], line.get("eval/episodes")
    figures = (line.get("time/seconds"), 0.0 if score is None else score)
    is_played = type(num_games) is int and num_games > 0
    return is_played and all(type(figure) in (int, float) for figure in figures)


def _stays(line: bytes, keep: Callable[[dict[str, Any]], bool]) -> bool:
    """Returns True for a complete and valid line that `keep` accepts."""
    try:
        return line.endswith(b"\n") and keep(_parsed(line))
    except (LookupError, TypeError):
        return False


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
