"""Tests of the synthetic environments: what they count, how long they take, how they fail."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from htsrl_cli.envs.registry import make_env
from htsrl_cli.envs.synthetic.environment import EXIT_CODE
from htsrl_cli.errors import CheckpointError, EnvError
from tests import sections

ACTION = np.array([1])


def test_count_tells_environment_episode_and_step() -> None:
    env = make_env(sections.synthetic("count", episode_length=2), index=7)
    assert env.reset(seed=0)[0].tolist() == [7, 0, 0]
    obs, reward, *ends, info = env.step(ACTION)
    assert (obs.tolist(), reward, ends, info) == ([7, 0, 1], 70_001.0, [False, False], {})
    obs, reward, *ends, info = env.step(ACTION)
    assert (obs.tolist(), reward, ends) == ([7, 0, 2], 70_002.0, [True, False])
    assert info == {"episode": {"r": 140_003.0, "l": 2}}
    assert env.reset(seed=0)[0].tolist() == [7, 1, 0]
    assert env.step(ACTION)[1] == 70_101.0


@pytest.mark.parametrize("truncate", [False, True])
def test_episodes_end_as_configured(truncate: bool) -> None:
    config = sections.synthetic("sleep", episode_length=1, truncate=truncate)
    env = make_env(config, index=0)
    env.reset(seed=0)
    assert env.step(ACTION)[2:4] == (not truncate, truncate)


def test_sleep_pays_for_naming_the_largest_number() -> None:
    env = make_env(sections.synthetic("sleep"), index=0)
    obs, _ = env.reset(seed=4)
    for _ in range(20):
        obs, reward, *_ = env.step(np.array([int(obs.argmax())]))
        assert reward == 1.0
        obs, reward, *_ = env.step(np.array([int((obs.argmax() + 1) % 4)]))
        assert reward == 0.0


@pytest.mark.parametrize(
    ("distribution", "shape", "deviation"),
    [("constant", 1.0, 0.0), ("exponential", 1.0, 10.0), ("gamma", 4.0, 5.0)],
)
def test_step_times_have_the_mean_and_deviation_of_their_distribution(
    distribution: str, shape: float, deviation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The mean is 10 ms; the gamma distribution's standard deviation is mean / sqrt(shape).
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    config = sections.synthetic(
        "sleep", distribution=distribution, mean_ms=10.0, shape=shape, episode_length=5000
    )
    env = make_env(config, index=0)
    env.reset(seed=0)
    for _ in range(4000):
        env.step(ACTION)
    assert np.mean(slept) * 1000 == pytest.approx(10.0, rel=0.05)
    assert np.std(slept) * 1000 == pytest.approx(deviation, rel=0.1, abs=1e-9)


def test_what_is_seen_does_not_depend_on_the_times() -> None:
    config = sections.synthetic("sleep", mean_ms=0.01)
    constant = make_env(config, index=0)
    random = make_env(replace(config, distribution="exponential"), index=1)
    assert (constant.reset(seed=5)[0] == random.reset(seed=5)[0]).all()
    for _ in range(10):
        assert (constant.step(ACTION)[0] == random.step(ACTION)[0]).all()


@pytest.mark.parametrize("name", ["sleep", "count", "faulty"])
def test_restored_environment_goes_on_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    config = sections.synthetic(name, distribution="gamma", mean_ms=1.0, episode_length=8)
    env, restored = (make_env(config, index=2) for _ in range(2))
    env.reset(seed=1)
    env.reset(seed=2)
    for _ in range(3):
        obs, *_ = env.step(ACTION)
    assert (restored.set_state(env.get_state()) == obs).all()
    futures = []
    for each in (env, restored):
        slept.clear()
        steps = [each.step(ACTION) for _ in range(5)]
        futures.append(([(obs.tolist(), *rest) for obs, *rest in steps], slept.copy()))
    assert futures[0] == futures[1]
    assert futures[0][0][-1][-1]["episode"]["l"] == 8


def test_damaged_and_foreign_states_are_refused() -> None:
    env = make_env(sections.synthetic("count"), index=0)
    env.reset(seed=0)
    state = env.get_state()
    for damaged in (b"", state[:-1], b"?" + state[1:]):
        with pytest.raises(CheckpointError):
            env.set_state(damaged)
    with pytest.raises(CheckpointError, match="name=count, not for name=sleep"):
        make_env(sections.synthetic("sleep"), index=0).set_state(state)


# Faults


def test_fault_comes_at_its_step_over_all_episodes() -> None:
    env = make_env(sections.synthetic("faulty", fault_step=3, episode_length=2), index=0)
    for _ in range(2):
        env.reset(seed=0)
        env.step(ACTION)
    env.step(ACTION)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="env step 3"):
        env.step(ACTION)


def test_fault_is_of_one_environment() -> None:
    config = sections.synthetic("faulty", fault_step=-1, fault_env=4)
    make_env(config, index=3)
    with pytest.raises(EnvError, match=r"environment 4 .*construction failed\n.*env step -1"):
        make_env(config, index=4)


CHILD = """
import sys
from htsrl_cli.envs.registry import make_env
from tests import sections
config = sections.synthetic("faulty", fault=sys.argv[1], fault_step=-1)
print("begun", flush=True)
make_env(config, index=0)
"""


def child(fault: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, fault]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("fault", "code"), [("crash", -signal.SIGSEGV), ("exit", EXIT_CODE)])
def test_process_ends(fault: str, code: int) -> None:
    with child(fault) as process:
        assert process.wait() == code


def test_process_hangs() -> None:
    with child("hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.kill()
