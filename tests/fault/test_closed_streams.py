"""Standard streams that are closed or full: a run trains on, and `train.log` says what happened."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from tests.fault.conftest import TOTAL
from tests.fault.processes import WORDS, Run
from tests.harness import Fingerprint, command


@pytest.mark.parametrize("redirection", ["2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_run_without_standard_streams(
    redirection: str, start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    words = shlex.join(command("train", *WORDS, TOTAL))
    run = start(command_line=["sh", "-c", f"exec {words} {redirection}"])
    assert run.wait() == 0, (run.folder / "train.log").read_text()
    assert run.fingerprint() == uninterrupted
    log = (run.folder / "train.log").read_text()
    assert "complete after 3,840 env steps" in log
    # No file of the run has taken the number of a closed stream.
    assert "Traceback" not in log


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_exit_code_of_an_error_that_cannot_be_shown(
    redirection: str, start: Callable[..., Run]
) -> None:
    words = shlex.join(command("train", "seed=none"))
    run = start(command_line=["sh", "-c", f"exec {words} {redirection}"])
    assert run.wait() == 2
