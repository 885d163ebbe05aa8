"""`htsrl` forked from a process that has done the imports, which take half of a command's start.

The fork is a real process with its own session, signals and workers. `tests.harness.command` gives
the command that starts `htsrl` in a new interpreter, as users do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm", "htsrl_cli.cli.preflight", "htsrl_cli.runners.run"])


class Command:
    """A running `htsrl WORDS ...` with part of the interface of `subprocess.Popen`.

    Args:
        words: arguments of `htsrl`.
        cwd: the working directory.
        environment: all environment variables.
        stderr: the file for standard error.
        stdout: the file for standard output, which is dropped if None.
    """

    def __init__(
        self,
        *words: str,
        cwd: Path,
        environment: Mapping[str, str],
        stderr: Path,
        stdout: Path | None = None,
    ) -> None:
        # The name of a process that multiprocessing did not start.
        self._process = _CONTEXT.Process(
            name="MainProcess",
            target=_main,
            args=(words, cwd, dict(environment), stdout or Path(os.devnull), stderr),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("htsrl", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    *words: str, cwd: Path, environment: Mapping[str, str], outputs: Path
) -> subprocess.CompletedProcess[str]:
    """Runs `htsrl WORDS ...` to its end; files in the folder `outputs` take its output."""
    stdout, stderr = outputs / "stdout", outputs / "stderr"
    code = Command(*words, cwd=cwd, environment=environment, stdout=stdout, stderr=stderr).wait()
    return subprocess.CompletedProcess(words, code, stdout.read_text(), stderr.read_text())


def _main(
    words: tuple[str, ...], cwd: Path, environment: dict[str, str], stdout: Path, stderr: Path
) -> NoReturn:
    os.setsid()
    for fd, file in ((1, stdout), (2, stderr)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, fd)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.argv = ["htsrl", *words]

    from htsrl_cli.cli.main import main

    try:
        sys.exit(main())
    finally:
        # An interpreter ends like this; multiprocessing leaves the second step out, and runs the
        # first too late for joblib, whose processes would never end.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
