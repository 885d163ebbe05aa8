"""An environment that forks: its child does not keep the lock of the run's folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.fault.processes import WORDS, Run

ENVIRONMENT = """
import os, time
import gymnasium, numpy
class A(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self):
        if os.path.exists("run/config.yaml") and not os.path.exists("child"):
            pid = os.fork()
            if pid == 0:
                time.sleep(1000)
                os._exit(0)
            with open("child", "w") as file:
                file.write(str(pid))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return numpy.zeros(2, numpy.float32), {}
    def step(self, action):
        return numpy.zeros(2, numpy.float32), 1.0, False, False, {}
gymnasium.register("Forking-v0", A)
"""


def test_a_forked_child_does_not_block_a_resume(start: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text(ENVIRONMENT)
    words = [word for word in WORDS if not word.startswith("env.")]
    words += ["env=gym", "env.id=forking:Forking-v0", "runner=serial", "total_steps=6400"]
    run = start("train", *words)
    run.wait_for_steps(700)
    run.signal(signal.SIGKILL)
    run.wait()
    child = int((tmp_path / "child").read_text())
    try:
        resumed = start("train", "resume=run", "env.id=forking:Forking-v0", "runner.stop_grace_s=1")
        assert resumed.wait() == 0, resumed.stderr
        os.kill(child, 0)  # the child is still alive, and holds no lock
    finally:
        os.kill(child, signal.SIGKILL)
