"""How fast environments step, alone and on all cores at once."""

from __future__ import annotations

import multiprocessing
from contextlib import closing

import psutil
import pytest

from htsrl_cli import env_rates
from htsrl_cli.config import GymConfig, SyntheticConfig
from htsrl_cli.env_rates import all_cores_env_rate, env_rate
from htsrl_cli.envs import make_env
from htsrl_cli.errors import RunError
from htsrl_cli.workers import Worker

# An env step takes 10 ms of sleep, so that a process more is a tenth of a second's steps more.
SLEEPER = SyntheticConfig("sleep", mean_ms=10.0)


def test_environments_on_all_cores_step_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(make_env(SLEEPER, 0)) as env:
        alone = env_rate(env, 0.5)
    assert alone <= 100
    monkeypatch.setattr(env_rates, "num_cores", lambda: 4)
    assert 2 * alone < all_cores_env_rate(SLEEPER, 0.5) <= 400
    assert not multiprocessing.active_children()


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RunError, match=r"stepper 0: .*NoSuchEnv"):
        all_cores_env_rate(GymConfig(id="NoSuchEnv-v0"), 0.1)
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_rates, "num_cores", lambda: 2)
    receive = env_rates._receive

    def kill_first(stepper: Worker) -> float:
        if stepper.name == "stepper 1":
            psutil.Process(stepper.host.ident).kill()
        return receive(stepper)

    monkeypatch.setattr(env_rates, "_receive", kill_first)
    with pytest.raises(RunError, match=r"^stepper 1: it ended$"):
        all_cores_env_rate(SLEEPER, 0.1)
    assert not multiprocessing.active_children()
