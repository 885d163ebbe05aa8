"""Tasks that a working trainer solves, to a threshold, with several seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.runners import run as runner

SOLVED = 475.0  # CartPole-v1, mean return of 100 episodes


def train(run_dir: Path, *overrides: str) -> float:
    """Runs what `htsrl train OVERRIDES` would; returns the mean return of the last episodes."""
    config = to_train_config(Composer("train").job(["log.tensorboard=false", *overrides]))
    outcome = runner.train(config, run_dir)
    assert outcome.metric is not None
    assert json.loads((run_dir / "summary.json").read_text())["metric"] == outcome.metric
    return outcome.metric


@pytest.mark.parametrize("algo", ["ppo", pytest.param("a2c", marks=pytest.mark.slow)])
def test_names_the_largest_of_four_numbers(algo: str, tmp_path: Path) -> None:
    """A reward for every step, 25 of 100 by chance: a minute's lesson for any policy gradient."""
    metric = train(
        tmp_path,
        "env=synthetic/sleep",
        "env.mean_ms=0",
        f"algo={algo}",
        "algo.learning_rate=3e-3",
        "runner.sync_interval=16",
        "total_steps=60_000",
    )
    assert metric > 70


@pytest.mark.slow
@pytest.mark.parametrize("runner_name", ["hts", "sync"])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_cartpole(algo: str, seed: int, runner_name: str, tmp_path: Path) -> None:
    metric = train(tmp_path, f"experiment=cartpole_{algo}", f"seed={seed}", f"runner={runner_name}")
    print(f"cartpole {algo} seed {seed} {runner_name}: {metric:.1f}")
    assert metric >= SOLVED


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["lstm", "gru", "none"])
def test_remembers_a_cue_for_fifty_env_steps(memory: str, tmp_path: Path) -> None:
    """The return is 50 for remembering the cue all the time, 25 by chance."""
    metric = train(
        tmp_path,
        "env=gym",
        "tuned=none",
        "env.id=tests.learning.memory_tasks:Cue-v0",
        "runner=serial",
        "runner.sync_interval=128",
        f"network.memory={memory}",
        "network.memory_size=32",
        "network.separate_value=false",
        "learner.micro_batch=1024",
        "algo=ppo",
        "algo.gamma=0.9",
        "algo.entropy_coef=0",
        "algo.learning_rate=2e-3",
        "total_steps=100_000",
    )
    print(f"cue {memory}: {metric:.2f}")
    assert metric < 30 if memory == "none" else metric > 45


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["lstm", "gru", "none"])
def test_balances_without_seeing_velocities(memory: str, tmp_path: Path) -> None:
    metric = train(
        tmp_path,
        "experiment=cartpole_ppo",
        "env.id=tests.learning.memory_tasks:CartPoleWithoutVelocities-v0",
        "env.normalize_obs=true",
        "env.normalize_reward=true",
        "runner=serial",
        "runner.sync_interval=128",
        f"network.memory={memory}",
        "network.memory_size=64",
        "actors.num_envs=16",
        "learner.micro_batch=1024",
        "algo.clip_value_loss=false",
        "algo.gamma=0.99",
        "algo.gae_lambda=0.95",
        "algo.value_coef=1.0",
        "total_steps=300_000",
    )
    print(f"CartPole without velocities, {memory}: {metric:.1f}")
    assert metric < 150 if memory == "none" else metric > 450
