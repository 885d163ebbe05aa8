"""The check of a refused command."""

from __future__ import annotations

import subprocess


def assert_refused(run: subprocess.CompletedProcess[str], *said: str) -> None:
    """Checks for exit code 2, one line on stderr and nothing on stdout."""
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("htsrl: error: ")
    for words in said:
        assert words in line
