"""Rates of environments, in one thread and on all cores at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

import psutil
import pytest

from htsrl_cli.bench import env_rates
from htsrl_cli.bench.env_rates import all_cores_env_rate, env_rate
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import RunError
from htsrl_cli.workers.process import Worker, start_process
from tests import sections

# An env step sleeps 10 ms, so that each process adds at most 100 env steps per second.
SLEEPER = sections.synthetic("sleep", mean_ms=10.0)


def test_environments_of_a_thread_take_turns() -> None:
    with ExitStack() as stack:
        envs = [stack.enter_context(closing(make_env(SLEEPER, i))) for i in range(4)]
        assert env_rate(envs[:1], 0.3) <= 100
        assert env_rate(envs, 0.3) <= 100
        stepped = [env.get_state() for env in envs]
        for index, env in enumerate(envs):
            env.reset(seed=index)
        assert all(env.get_state() != state for env, state in zip(envs, stepped, strict=True))


def test_cores_share_environments_and_step_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[Sequence[int]] = []

    def start(*args: Any) -> Worker:
        shares.append(list(args[5]))
        return start_process(*args)

    monkeypatch.setattr(env_rates, "start_process", start)
    monkeypatch.setattr(env_rates, "num_cores", lambda: 4)
    # Sleeping processes need no core. If only one stepped at a time, the rate were at most 100.
    assert 100 < all_cores_env_rate(SLEEPER, 6, 0.5) <= 400
    assert shares == [[0, 1], [2, 3], [4], [5]]
    shares.clear()
    assert all_cores_env_rate(SLEEPER, 1, 0.1) <= 100
    assert shares == [[0]]
    assert not multiprocessing.active_children()


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RunError, match=r"^stepper 0, .* failed: .*NoSuchEnv"):
        all_cores_env_rate(sections.gym(id="NoSuchEnv-v0"), 2, 0.1)
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_rates, "num_cores", lambda: 2)
    receive = env_rates._receive

    def kill_first(stepper: Worker) -> float:
        if stepper.name == "stepper 1":
            psutil.Process(stepper.host.ident).kill()
        return receive(stepper)

    monkeypatch.setattr(env_rates, "_receive", kill_first)
    with pytest.raises(RunError, match=r"^stepper 1, .* failed: it ended without an answer$"):
        all_cores_env_rate(SLEEPER, 2, 0.1)
    assert not multiprocessing.active_children()
