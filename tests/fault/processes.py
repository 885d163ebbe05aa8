"""Runs started by command, with all their processes and leftovers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint
from htsrl_cli.checkpoints.store import find_checkpoint
from tests import warm
from tests.harness import Fingerprint, environment, fingerprint

MARKER = "HTSRL_TEST_RUN"
# Waits fail after this time, far longer than anything here takes.
PATIENCE_S = 240.0
# The processes of a killed run must be gone within this time.
GONE_S = 30.0
NUM_EXECUTORS = 2
STEPS_PER_ROLLOUT = 64
# A rollout takes a twentieth of a second, and each writes a line of metrics.
_COMMON = (
    "env=synthetic/sleep",
    "env.episode_length=23",
    "actors.num_envs=4",
    f"actors.num_executors={NUM_EXECUTORS}",
    "actors.inference_batch=4",
    "runner.sync_interval=16",
    "network.hidden_sizes=[8]",
    "learner.micro_batch=16",
    "learner.num_threads=2",
    "checkpoint.interval=640",
    f"log.interval={STEPS_PER_ROLLOUT}",
    "log.tensorboard=false",
    "hydra.run.dir=run",
)
WORDS = (*_COMMON, "algo.num_minibatches=2", "algo.update_epochs=1")
# The same with `runner=async`: an update uses four unrolls.
ASYNC_WORDS = (
    *_COMMON,
    "runner=async",
    "algo=impala",
    "runner.unrolls_per_update=4",
    "runner.spare_unrolls=4",
)
ENDLESS = "total_steps=1_000_000_000"
# All files that a run's folder may hold, whenever its process ended.
KNOWN_FILES = re.compile(
    r"\.lock|\.hydra/(config|hydra|overrides)\.yaml|config\.yaml|train\.log|(metrics|schedule)\.jsonl"
    r"|(summary|eval)\.json|checkpoints/step_\d{12}\.ckpt|evaluations/policy_\d{12}\.ckpt"
)


def wait_until(holds: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Polls until `holds()` is true; raises AssertionError after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for: {what}"
        time.sleep(0.02)


class Run:
    """A command in its own folder; `leftovers` lists what is left of it in the system.

    Args:
        cwd: its working directory; its temporary files go to a folder there.
        words: arguments of `htsrl`.
        command_line: another command to run instead of a fork of `htsrl`.
        env: environment variables to add.
    """

    def __init__(
        self,
        cwd: Path,
        *words: str,
        command_line: Sequence[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._tmp = cwd / f"tmp-{self._mark}"
        self._tmp.mkdir()
        self._segments = _segments()
        self.folder = cwd / "run"
        self._stderr = self._tmp.with_suffix(".stderr")
        variables = environment() | {MARKER: self._mark, "TMPDIR": str(self._tmp)} | (env or {})
        self._stderr.touch()
        self.process: subprocess.Popen[bytes] | warm.Command
        if command_line is None:
            self.process = warm.Command(*words, cwd=cwd, environment=variables, stderr=self._stderr)
            return
        with open(self._stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                command_line,
                cwd=cwd,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def env_steps(self) -> int:
        """The env steps in the last line of metrics; 0 before the first."""
        try:
            # What follows the last newline is still being written.
            lines = (self.folder / "metrics.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return 0
        return int(json.loads(lines[-1])["env_steps"]) if lines else 0

    def checkpoint(self) -> Checkpoint:
        """Loads the newest checkpoint."""
        return load_checkpoint(find_checkpoint(self.folder))

    def fingerprint(self) -> Fingerprint:
        """Reads the fingerprint of the complete run."""
        return fingerprint(self.folder)

    def processes(self) -> list[psutil.Process]:
        """Returns all living processes, orphans included, in order of their start."""
        found = [process for process in psutil.process_iter() if self._is_mine(process)]
        return sorted(found, key=lambda process: process.pid)

    def workers(self) -> list[psutil.Process]:
        """Returns the executors, then the actors."""
        return [process for process in self.processes() if "spawn_main" in _command(process)]

    def executors(self) -> list[psutil.Process]:
        return self.workers()[:NUM_EXECUTORS]

    def actors(self) -> list[psutil.Process]:
        return self.workers()[NUM_EXECUTORS:]

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if process.pid == self.process.pid:
                return bool(alive)
            return bool(alive and process.environ().get(MARKER) == self._mark)
        except psutil.Error:
            return False

    def wait_for_steps(self, env_steps: int) -> None:
        """Blocks until a line of metrics has at least `env_steps`."""
        wait_until(
            lambda: self.env_steps >= env_steps or self.process.poll() is not None,
            f"{env_steps} env steps",
        )
        assert self.env_steps >= env_steps, self.stderr

    def wait_for_quiet(self) -> None:
        """Blocks until all processes are idle, waiting for something that does not come."""

        def cpu_s() -> float:
            return float(sum(sum(process.cpu_times()[:2]) for process in self.processes()))

        def quiet() -> bool:
            before = cpu_s()
            time.sleep(0.5)
            return cpu_s() - before < 0.03

        wait_until(quiet, "the run to come to a halt")

    def wait_for_start(self) -> None:
        """Blocks until the program has started and handles signals."""
        status = Path(f"/proc/{self.process.pid}/status")

        def handles_signals() -> bool:
            caught = re.search(r"SigCgt:\s*(\w+)", status.read_text())
            return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

        wait_until(handles_signals, "the program's start")

    def signal(self, number: int, group: bool = False) -> None:
        """Sends a signal to the main process, or to all processes of its group."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Waits for the end; returns the exit status, negative for a signal."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {patience_s:g} s:\n{self.stderr}") from None

    def leftovers(self, patience_s: float = GONE_S) -> list[str]:
        """Returns processes, segments and temporary files that remain after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while (found := self._leftovers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _leftovers(self) -> list[str]:
        processes = [f"process {process.pid} {_command(process)}" for process in self.processes()]
        segments = [f"segment {name}" for name in _segments() - self._segments]
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        names = [str(path.relative_to(self.folder)) for path in files]
        temporary = [name for name in names if not KNOWN_FILES.fullmatch(name)]
        return processes + segments + temporary + [path.name for path in self._tmp_files()]

    def _tmp_files(self) -> list[Path]:
        """Returns the files in $TMPDIR, except the cache that a user's torch processes share."""
        paths = self._tmp.rglob("*")
        return [path for path in paths if path.is_file() or "torchinductor_" not in path.name]

    def end(self) -> None:
        """Kills what is left, so that a failed test leaves nothing behind."""
        for process in self.processes():
            process.kill()
        self.process.wait(PATIENCE_S)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _segments() -> set[str]:
    """Returns the named shared memory and semaphores that have no living owner.

    Unrelated processes may run during a test and own some. A segment of the run that a living
    process owns is not listed either, but then the process itself is a leftover.
    """
    folder = Path("/dev/shm")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not _has_living_owner(name)}


def _has_living_owner(segment: str) -> bool:
    """Returns True if the process that joblib named in a segment is alive."""
    number = re.search(r"(?:joblib_memmapping_folder_|loky-)(\d+)", segment)
    return number is not None and psutil.pid_exists(int(number[1]))


@contextmanager
def without_leftovers() -> Iterator[list[Run]]:
    """Yields a list for runs; at the end, all runs in it must have ended without leftovers."""
    runs: list[Run] = []
    yield runs
    left = [thing for run in runs for thing in run.leftovers()]
    for run in runs:
        run.end()
    assert not left
