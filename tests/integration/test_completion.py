"""Tab completion in an interactive bash at a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import environment

PROMPT = "ready> "
PATIENCE_S = 60.0


class Bash:
    """An interactive bash at a pseudo-terminal that has loaded htsrl's completion."""

    def __init__(self, cwd: Path) -> None:
        self._fd, terminal = pty.openpty()
        binaries = str(Path(sys.executable).parent)
        variables = environment() | {
            "PATH": os.pathsep.join([binaries, os.environ["PATH"]]),
            "PS1": PROMPT,
            "TERM": "dumb",
            "INPUTRC": "/dev/null",
        }
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            cwd=cwd,
            env=variables,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self._read_until(re.escape(PROMPT))
        self._type('eval "$(htsrl -sc install=bash)"; echo lo""aded\n')
        self._read_until(r"loaded\s+" + re.escape(PROMPT))

    def complete(self, line: str, expected: str) -> None:
        """Types `line` and the tab key; `expected`, a regular expression, must appear."""
        self._type(line + "\t")
        self._read_until(expected)
        # Ctrl-U deletes the line.
        self._type('\x15echo cle""ared\n')
        self._read_until(r"cleared\s+" + re.escape(PROMPT))

    def choices(self, line: str, expected: str) -> None:
        """Types `line` and the tab key twice, which lists the candidates; see `complete`."""
        self.complete(line + "\t", expected)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def _type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def _read_until(self, expected: str) -> None:
        shown, deadline = "", time.monotonic() + PATIENCE_S
        while not re.search(expected, shown):
            ready, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
            assert ready, f"{expected!r} does not come after {shown!r}"
            shown += os.read(self._fd, 4096).decode().replace("\a", "")
            assert not re.search("error|usage|Traceback", shown)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    """Starts bash in a folder with a subfolder that holds a file."""
    (tmp_path / "some_runs").mkdir()
    (tmp_path / "some_runs" / "step.ckpt").touch()
    shell = Bash(tmp_path)
    yield shell
    shell.close()


def test_every_verb_is_completed(bash: Bash) -> None:
    bash.choices("htsrl ", r"bench\s+eval\s+list\s+report\s+train")
    bash.complete("htsrl tr", r"htsrl train")
    # Groups and their options, keys, and a verb's arguments.
    bash.complete("htsrl train alg", r"htsrl train algo[.=]?")
    bash.choices("htsrl train algo=", r"algo=a2c\s+algo=impala\s+algo=ppo|a2c\s+impala\s+ppo")
    bash.complete("htsrl train algo.gam", r"htsrl train algo\.gamma=")
    bash.complete("htsrl train env=atari/ms_p", r"atari/ms_pacman")
    bash.complete("htsrl eval gre", r"htsrl eval greedy=")
    bash.complete("htsrl bench bench.rep", r"htsrl bench bench\.repeats=")
    bash.complete("htsrl list exp", r"htsrl list experiment")


def test_what_is_no_value_of_a_key_does_not_disturb(bash: Bash) -> None:
    bash.complete("htsrl train -m 'seed=range(1,3)' algo.gam", r"algo\.gamma=")
    bash.complete("htsrl train --multirun seed=1,2 algo=a2c algo.rmsprop_e", r"algo\.rmsprop_eps=")
    bash.complete("htsrl train --c", "")
    bash.complete("htsrl train algo=none algo.gam", "")


def test_runs_are_completed(bash: Bash) -> None:
    bash.complete("htsrl train resume=some", r"resume=some_runs/")
    bash.complete("htsrl eval checkpoint=some_runs/st", r"checkpoint=some_runs/step\.ckpt")
    bash.complete("htsrl eval checkpoint=./some_runs/st", r"checkpoint=\./some_runs/step\.ckpt")


def test_report_completes_folders(bash: Bash) -> None:
    bash.complete("htsrl report some", r"htsrl report some_runs")
