"""Scenarios and child processes for the tests of football."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import sections

ROOT = Path(__file__).parents[2]
EASY = sections.football("academy_empty_goal_close")
KEEPER = sections.football("academy_3_vs_1_with_keeper")
FULL = sections.football("11_vs_11_stochastic")


def child(code: str, *words: str) -> str:
    """Runs code in a new process; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
