"""Rates at which environments step, in the calling thread or spread over all cores.

This module imports neither torch nor hydra, so that processes that only step environments use
little memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection

import numpy as np

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plan import env_shares
from htsrl_cli.envs.base import Env
from htsrl_cli.envs.probe import random_action
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import RunError
from htsrl_cli.machine import num_cores
from htsrl_cli.workers.process import Worker, start_process, stop_workers


def rate(work: Callable[[], int], seconds: float) -> float:
    """Measures the amount of work per second, after one warm-up call.

    Args:
        work: a function that does some work and returns its amount.
        seconds: minimum duration of the measurement.
    """
    work()
    amount, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        amount += work()
    return amount / elapsed


def env_rate(envs: Sequence[Env], seconds: float) -> float:
    """Measures the total env steps per second of `envs`, stepped in turn with random actions."""
    rng = np.random.default_rng(0)

    def step() -> int:
        for env in envs:
            _, _, terminated, truncated, _ = env.step(random_action(env, rng))
            if terminated or truncated:
                env.reset(seed=int(rng.integers(2**31)))
        return len(envs)

    for index, env in enumerate(envs):
        env.reset(seed=index)
    return rate(step, seconds)


def all_cores_env_rate(env: EnvConfig, num_envs: int, seconds: float) -> float:
    """Measures the total env steps per second of `num_envs` environments spread over all cores.

    Each core runs one process, unless there are fewer environments than cores. The result is the
    highest rate at which the cores can step these environments. A single environment on an idle
    machine has a higher rate per core, for two reasons. Environments that take turns evict each
    other from the caches. Busy cores share caches, memory and power, and hyperthreads share a core.

    Raises:
        RunError: a process failed.
    """
    steppers: list[Worker] = []
    try:
        for i, share in enumerate(env_shares(num_envs, min(num_envs, num_cores()))):
            what = _step, env, share, seconds
            steppers.append(start_process(f"stepper {i}", i, env.step_timeout_s, *what))
        for _ in ("ready", "done"):
            answers = [_receive(stepper) for stepper in steppers]
            for stepper in steppers:
                stepper.send("go on")
        return sum(answers)
    finally:
        stop_workers(steppers, gracefully=False)


def _step(
    control: Connection, worker: int, config: EnvConfig, indices: Sequence[int], seconds: float
) -> None:
    """Runs in a child process: measures the env steps per second of its environments.

    Sends 0 when the environments are built, waits for a message, sends the measured rate, and waits
    for another message.
    """
    with ExitStack() as stack:
        envs = [stack.enter_context(closing(make_env(config, index))) for index in indices]
        control.send(("rate", 0.0))
        control.recv()
        control.send(("rate", env_rate(envs, seconds)))
        control.recv()


def _receive(stepper: Worker) -> float:
    try:
        kind, content = stepper.control.recv()
    except (EOFError, OSError):
        kind, content = "error", "it ended without an answer"
    if kind == "error":
        raise RunError(f"{stepper.name}, a process that only steps environments, failed: {content}")
    return float(content)
