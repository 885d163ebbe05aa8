"""Processes that an environment starts: they end with the run, however it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.fault.processes import WORDS, Run, wait_until

NUM_ENVS = 4  # of `WORDS`

# An environment with a server of its own, which ends only if the environment is closed.
ENVIRONMENT = """
import subprocess
import gymnasium, numpy
class A(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self):
        self.server = subprocess.Popen(["sleep", "1000"])
    def close(self):
        self.server.kill()
        self.server.wait()
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return numpy.zeros(2, numpy.float32), {}
    def step(self, action):
        self.steps += 1
        if self.steps == LIMIT:
            raise RuntimeError("out of luck")
        return numpy.zeros(2, numpy.float32), 1.0, False, self.steps % 20 == 0, {}
gymnasium.register("Serving-v0", A)
"""


@pytest.fixture
def begin(start: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """Returns a function that starts a run whose environments raise after some env steps."""

    def begin(*more: str, limit: int = 0) -> Run:
        (tmp_path / "serving.py").write_text(ENVIRONMENT.replace("LIMIT", str(limit)))
        words = [word for word in WORDS if not word.startswith("env.")]
        return start("train", *words, "env=gym", "env.id=serving:Serving-v0", *more)

    return begin


def servers(run: Run) -> list[psutil.Process]:
    """Returns the living servers of a run, whose parents may have ended."""
    return [process for process in run.processes() if _is_server(process)]


def _is_server(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "sleep")
    except psutil.NoSuchProcess:  # it ended after the list was made
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_of_executors_end_with_the_main_process(
    number: signal.Signals, begin: Callable[..., Run]
) -> None:
    run = begin("total_steps=1_000_000")
    run.wait_for_steps(200)
    assert len(servers(run)) == NUM_ENVS
    run.signal(number)
    run.wait()
    wait_until(lambda: not servers(run), "the end of the servers")


def test_of_a_failing_executor_end(begin: Callable[..., Run]) -> None:
    run = begin("total_steps=1_000_000", limit=15)
    assert run.wait() == 1
    assert "out of luck" in run.stderr
    wait_until(lambda: not servers(run), "the end of the servers")


def test_of_the_evaluator_end_with_the_main_process(begin: Callable[..., Run]) -> None:
    evaluated = ("eval.interval=640", "eval.episodes=100_000")
    run = begin("runner=serial", "total_steps=1_000_000", *evaluated)
    wait_until(lambda: len(servers(run)) > NUM_ENVS, "the evaluator's environments")
    run.signal(signal.SIGKILL)
    run.wait()
    # With `runner=serial`, environments belong to the main process, so their servers live on.
    wait_until(lambda: len(servers(run)) == NUM_ENVS, "the end of the evaluator's servers")
    for server in servers(run):
        server.kill()
