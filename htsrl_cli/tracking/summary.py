"""The file `summary.json`, which a run writes when it ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from htsrl_cli.durable import write_durably

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"


def write_summary(run_dir: Path, summary: Mapping[str, object]) -> None:
    """Writes `summary.json` atomically.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(summary, indent=2) + "\n"
    write_durably(run_dir / SUMMARY_FILE, lambda file: file.write(text.encode()))


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Returns the content of `summary.json`; an empty dict if the run has not written it yet.

    If the file is damaged, logs a warning and returns an empty dict.
    """
    path = run_dir / SUMMARY_FILE
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("ignored %s: %s", path, error)
        return {}
    if not isinstance(summary, dict):
        logger.warning("ignored %s: it holds no names and values", path)
        return {}
    return summary
