"""How fast environments step: one in this thread, and one on every core at the same time.

Free of torch and hydra, as the processes that step them are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection

import numpy as np

from htsrl_cli.config import EnvConfig
from htsrl_cli.envs import Env, make_env
from htsrl_cli.errors import RunError
from htsrl_cli.machine import num_cores
from htsrl_cli.workers import Worker, start_process, stop_workers


def rate(work: Callable[[], int], seconds: float) -> float:
    """Amount of work per second; a first call warms up."""
    work()
    amount, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        amount += work()
    return amount / elapsed


def env_rate(env: Env, seconds: float) -> float:
    """Env steps per second of one environment under random actions."""
    rng = np.random.default_rng(0)
    spec = env.env_spec.actions
    shape = (env.env_spec.num_players, spec.num_dims)

    def step() -> int:
        gaussian = spec.kind == "gaussian"
        draw = rng.standard_normal(shape) if gaussian else rng.integers(spec.sizes, size=shape)
        actions = draw.astype(spec.dtype)
        _, _, terminated, truncated, _ = env.step(actions if len(actions) > 1 else actions[0])
        if terminated or truncated:
            env.reset(seed=int(rng.integers(2**31)))
        return 1

    env.reset(seed=0)
    return rate(step, seconds)


def all_cores_env_rate(env: EnvConfig, seconds: float) -> float:
    """Env steps per second of as many environments as there are cores, each in its own process.

    What is left of the cores' one-thread rates when all are busy: they share caches, memory and
    power, and virtual ones share cores.

    Raises:
        RunError: a process failed.
    """
    steppers: list[Worker] = []
    try:
        for i in range(num_cores()):
            name = f"stepper {i}"
            steppers.append(start_process(name, i, env.step_timeout_s, _step, env, seconds))
        for _ in ("ready", "done"):
            answers = [_receive(stepper) for stepper in steppers]
            for stepper in steppers:
                stepper.send("go on")
        return sum(answers)
    finally:
        stop_workers(steppers, gracefully=False)


def _step(control: Connection, index: int, config: EnvConfig, seconds: float) -> None:
    """A process's part: says 0 when it is ready, and its rate after it has been told to start."""
    with closing(make_env(config, index)) as env:
        control.send(("rate", 0.0))
        control.recv()
        control.send(("rate", env_rate(env, seconds)))
        control.recv()


def _receive(stepper: Worker) -> float:
    try:
        kind, content = stepper.control.recv()
    except (EOFError, OSError):
        kind, content = "error", "it ended"
    if kind == "error":
        raise RunError(f"{stepper.name}: {content}")
    return float(content)
