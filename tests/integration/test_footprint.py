"""The footprint of the command and its processes: imports, memory and data through pipes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.fault.processes import ENDLESS, NUM_EXECUTORS, WORDS, Run, wait_until
from tests.harness import NO_FOOTBALL, command, environment

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
OBS_BYTES = 84 * 84 * 4
# Code for every process: SIGRTMIN makes it write the names of its modules.
MODULES_ON_SIGNAL = """
import os, signal, sys
def write_modules(number, frame):
    with open(f"modules.{os.getpid()}.part", "w") as file:
        print(*sys.modules, file=file)
    os.rename(file.name, file.name.removesuffix(".part"))
signal.signal(signal.SIGRTMIN, write_modules)
"""


def imported(*words: str) -> set[str]:
    """Returns the top-level modules that `htsrl WORDS` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "htsrl_cli", *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(re.findall(r"\|\s*(\w+)[\w.]*$", done.stderr, re.MULTILINE))


def test_help_is_light() -> None:
    modules = imported("--help")
    assert "htsrl_cli" in modules
    assert not modules & {"torch", "hydra", "omegaconf", "numpy", "gymnasium", "multiprocessing"}


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "--cfg", "job"]])
def test_configuration_is_light(words: list[str]) -> None:
    modules = imported(*words)
    assert "hydra" in modules
    assert not modules & {"torch", "gymnasium", "ale_py", "tensorboard"}


@pytest.fixture(scope="module")
def pong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Starts a run of two executors with four games each, and waits until it learns."""
    cwd = tmp_path_factory.mktemp("pong")
    (cwd / "sitecustomize.py").write_text(MODULES_ON_SIGNAL)
    words = [word for word in WORDS if not word.startswith("env")]
    command_line = command(
        "train",
        *words,
        "env=atari/pong",
        "actors.num_envs=8",
        "runner.sync_interval=128",
        "learner.micro_batch=128",
        "checkpoint.interval=1_000_000_000",
        "log.interval=1024",
        ENDLESS,
    )
    python_path = {"PYTHONPATH": os.pathsep.join([str(cwd), environment()["PYTHONPATH"]])}
    run = Run(cwd, command_line=command_line, env=python_path)
    run.wait_for_steps(2048)
    yield run
    run.end()


@LINUX
def test_memory_of_an_executor(pong: Run) -> None:
    executors = pong.executors()
    assert len(executors) == NUM_EXECUTORS
    for executor in executors:
        assert pss_kb(executor) < 120_000


def pss_kb(process: psutil.Process) -> int:
    """Returns a process's memory in kB (PSS, which includes its share of shared pages)."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])


@LINUX
@pytest.mark.slow
def test_memory_of_a_football_executor(tmp_path: Path) -> None:
    """Compares the memory after 5,000 and after 105,000 env steps of one environment."""
    pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    words = [word for word in WORDS if not word.startswith(("env", "actors.num_e"))]
    run = Run(
        tmp_path,
        "train",
        *words,
        "env=football/academy_3_vs_1_with_keeper",
        "actors.num_envs=1",
        "actors.num_executors=1",
        "runner.sync_interval=500",
        "learner.micro_batch=250",
        "checkpoint.interval=1_000_000_000",
        "log.interval=1000",
        ENDLESS,
    )
    try:
        run.wait_for_steps(5_000)
        executor = run.workers()[0]
        before = pss_kb(executor)
        for env_steps in range(15_000, 115_000, 10_000):
            run.wait_for_steps(env_steps)
        after = pss_kb(executor)
    finally:
        run.end()
    print(f"PSS {before / 1000:.1f} MB after 5,000 env steps, {after / 1000:.1f} after 105,000")
    assert before < 250_000
    # The engine itself leaks 4 KB at every reset, about 5 MB in total.
    assert after < before + 10_000, (before, after)


@LINUX
def test_modules_of_an_executor(pong: Run) -> None:
    heavy = ("torch", "hydra", "omegaconf", "tensorboard", "scipy", "rich")
    modules = modules_of(pong, pong.executors()[0])
    assert {"htsrl_cli.sampling.executor", "ale_py", "numpy"} <= modules
    assert not modules & set(heavy)
    # torch's compiler takes as long to import as torch.
    for process in (pong.actors()[0], psutil.Process(pong.process.pid)):
        modules = modules_of(pong, process)
        assert "torch" in modules
        assert "torch._dynamo" not in modules
    mapped = Path(f"/proc/{pong.executors()[0].pid}/maps").read_text()
    assert "ale" in mapped
    assert "torch" not in mapped


def modules_of(run: Run, process: psutil.Process) -> set[str]:
    """Returns the names of the modules that a process of the run has imported so far."""
    path = run.folder.with_name(f"modules.{process.pid}")
    process.send_signal(signal.SIGRTMIN)
    wait_until(path.exists, "a list of modules")
    return set(path.read_text().split())


@LINUX
def test_observations_do_not_travel(pong: Run) -> None:
    """Checks that an env step takes only some bytes through pipes, not the observation."""
    workers = pong.workers()
    before, steps = transferred(workers), pong.env_steps
    pong.wait_for_steps(steps + 2 * 1024)
    bytes_per_step = (transferred(workers) - before) / (pong.env_steps - steps)
    # A request of two numbers and an answer of one, each written and read, make 24 bytes.
    assert 12 < bytes_per_step < 100 < OBS_BYTES


def transferred(processes: Sequence[psutil.Process]) -> int:
    """Returns the bytes that processes have read and written by system calls, pipes included."""
    counters = [process.io_counters() for process in processes]
    return sum(counter.read_chars + counter.write_chars for counter in counters)
