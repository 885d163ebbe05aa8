"""The process in which `htsrl_cli.api.train` trains, and its start from the calling program.

    calling program                                trainer, its workers below it
    start_trainer  ── the words ──►  run `htsrl train` with the words
    receives       ◄── folder, or an exception ──  and end

Training changes settings of the whole process: signal handlers, logging, Hydra's globals, and
torch's settings. In a process of its own, it leaves those of the calling program alone and does not
depend on them. It also needs no `if __name__ == "__main__"` in a program: workers import the main
module of the process that started them, and this process has none.

The calling program imports this module, so at the top level it imports little.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe, connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from htsrl_cli.cli import main as cli
from htsrl_cli.cli import system
from htsrl_cli.errors import HtsrlError, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Trained:
    """The end of a run, whether complete or stopped by a signal.

    Attributes:
        folder: the run folder, absolute.
        is_complete: True if the run has made all its env steps.
    """

    folder: Path
    is_complete: bool


Answer = Trained | HtsrlError


def start_trainer(
    words: Sequence[str], stderr: int | None
) -> tuple[subprocess.Popen[str], Connection]:
    """Starts a trainer; returns the process and the connection that brings its `Answer`.

    If the connection is closed, or the calling process ends, the run stops at its next barrier.

    Args:
        words: the words after `htsrl train`.
        stderr: `subprocess.PIPE`, or None to use standard error of this process.
    """
    ours, theirs = Pipe()
    # The modules that this program can import must be found there, too.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from htsrl_cli.cli.trainer import run_trainer; run_trainer({theirs.fileno()})"
    )
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            pass_fds=[theirs.fileno()],
        )
    # If the process has already died, the caller sees it when it receives.
    with suppress(OSError):
        ours.send(list(words))
    return process, ours


def run_trainer(handle: int) -> None:
    """Runs the trainer: trains with the words from the connection, then sends the `Answer`.

    Args:
        handle: file descriptor of the connection.
    """
    cli.handle_signals(cli.leave)
    control = Connection(handle)
    words = control.recv()
    threading.Thread(target=_stop_with_caller, args=(control,), daemon=True).start()
    answer = _train(words)
    # From here on, a signal has nothing to stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # If the caller has ended, it needs no answer.
    with suppress(OSError):
        control.send(answer)


def _stop_with_caller(control: Connection) -> None:
    connection.wait([control])
    os.kill(os.getpid(), signal.SIGTERM)


def _train(words: list[str]) -> Answer:
    answers: list[Answer] = []

    def task(cfg: DictConfig) -> None:
        from htsrl_cli.cli.job import run_job

        # Hydra would print an error's traceback.
        try:
            with system.exits_as_errors():
                job, outcome = run_job(cfg)
            answers.append(Trained(job.run_dir.resolve(), outcome.is_complete))
        except HtsrlError as error:
            answers.append(error)

    try:
        _refuse_sweep(words)
        cli.run_verb("train", words, task)
    except HtsrlError as error:
        return error
    return answers[0]


def _refuse_sweep(words: list[str]) -> None:
    """Raises `UsageError` for flags, and for keys that ask for several runs."""
    for word in words:
        if word.startswith("-"):
            raise UsageError(f"{word}: train takes no flags: use the command htsrl train")
    from htsrl_cli.cli.compose import Composer

    if Composer("train").is_multirun(words):
        raise UsageError("train makes one run: for a sweep or a search, use htsrl train -m")
