"""Training, resuming and evaluating on a pretended GPU.

Its kernels are the CPU's, so runs on both devices have equal bits. A tensor on the wrong device
raises an error, and a different computation shows in the hashes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.fault.processes import wait_until
from tests.harness import environment, fingerprint

ON_GPU = ["learner.device=cuda", "actors.device=cuda", "actors.host=thread"]
SMALL = [
    *(
        "env=gym",
        "tuned=none",
        "actors.num_envs=4",
        "runner.sync_interval=32",
        "learner.micro_batch=32",
    ),
    *("algo.anneal_learning_rate=false", "total_steps=512"),
]
PPO = ["algo=ppo", "algo.update_epochs=2"]
RUNS = {
    "PPO": [*SMALL, *PPO, "env.id=CartPole-v1", "algo.correction=vtrace"],
    "A2C": [*SMALL, "algo=a2c", "env.id=CartPole-v1"],
    "Gaussian actions": [*SMALL, *PPO, "env.id=Pendulum-v1"],
    "masked actions": [
        *(*SMALL, *PPO, "algo.correction=vtrace", "env.mask_actions=true"),
        "env.id=tests.unit.masked_env:Masked-v0",
    ],
    "memory": [
        *(*SMALL, *PPO, "env.id=CartPole-v1", "algo.correction=vtrace"),
        *("network.memory=lstm", "network.memory_size=16"),
    ],
    "squashed and normalized": [
        *(*SMALL, *PPO, "env.id=Pendulum-v1", "env.max_episode_steps=20", "algo.squash=tanh"),
        *("env.normalize_obs=true", "env.normalize_reward=true"),
    ],
    "images in bf16": [
        *("env=atari/pong", "algo=ppo", "actors.num_envs=4", "runner.sync_interval=16"),
        *("algo.update_epochs=1", "total_steps=256", "learner.precision=bf16"),
        "actors.precision=bf16",
    ],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Returns a function that gives the folder of a run of `RUNS` on `cpu` or `gpu`.

    The run is trained at the first call.
    """
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, device: str) -> Path:
        run_dir = folder / f"{name}-{device}".replace(" ", "_")
        if not run_dir.exists():
            train(device, run_dir, *RUNS[name])
        return run_dir

    return run


def python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` in a separate process, as devices stay registered in one."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def htsrl(device: str, *words: str, folder: Path) -> None:
    """Runs `htsrl WORDS` on the CPU, or with a pretended GPU where it names CUDA."""
    module = {"cpu": "htsrl_cli", "gpu": "tests.pretend_gpu"}[device]
    done = python("-m", module, *words, folder=folder)
    assert done.returncode == 0, done.stderr


def train(device: str, run_dir: Path, *words: str) -> None:
    """Runs `htsrl train WORDS`, by default in fp32."""
    fp32 = ["learner.precision=fp32", "actors.precision=fp32", "learner.num_threads=1"]
    common = [*fp32, "log.tensorboard=false", f"hydra.run.dir={run_dir}"]
    where = ON_GPU if device == "gpu" else []
    htsrl(device, "train", *common, *where, *words, folder=run_dir.parent)


@pytest.mark.parametrize(
    "name",
    [
        "PPO",
        pytest.param("A2C", marks=pytest.mark.slow),
        pytest.param("Gaussian actions", marks=pytest.mark.slow),
        pytest.param("masked actions", marks=pytest.mark.slow),
        pytest.param("memory", marks=pytest.mark.slow),
        pytest.param("squashed and normalized", marks=pytest.mark.slow),
        # Not in fp32, where the network uses another kernel on the CPU, with other bits.
        pytest.param("images in bf16", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_a_gpu_does_the_same_as_on_the_cpu(
    name: str, trained: Callable[[str, str], Path]
) -> None:
    assert fingerprint(trained(name, "gpu")) == fingerprint(trained(name, "cpu"))


@pytest.mark.slow
def test_games_evaluated_on_a_gpu_have_the_scores_of_the_cpu(
    trained: Callable[[str, str], Path],
) -> None:
    scores = []
    for device in ("cpu", "gpu"):
        run_dir = trained("PPO", device)
        htsrl(device, "eval", f"checkpoint={run_dir}", "episodes=4", folder=run_dir.parent)
        scores.append(json.loads((run_dir / "eval.json").read_text())["scores"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "name",
    [
        "PPO",
        pytest.param("A2C", marks=pytest.mark.slow),
        pytest.param("memory", marks=pytest.mark.slow),
        pytest.param("squashed and normalized", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_on_a_gpu_equals_one_that_was_not_interrupted(
    name: str, trained: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Covers what must return to the GPU: the optimizer's state, θ[j-1] and the unlearned slot."""
    part = tmp_path / "part"
    train("gpu", part, *RUNS[name], "total_steps=256")
    htsrl("gpu", "train", f"resume={part}", "total_steps=512", folder=tmp_path)
    assert fingerprint(part) == fingerprint(trained(name, "gpu"))


@pytest.mark.slow
def test_executors_stand_back_for_actors_on_a_gpu(tmp_path: Path) -> None:
    words = [*SMALL, "env.id=CartPole-v1", "actors.num_executors=2", "total_steps=1_000_000_000"]
    start = [sys.executable, "-m", "tests.pretend_gpu", "train", *words, *ON_GPU]
    main = psutil.Popen(start, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(tmp_path.glob("runs/**/metrics.jsonl")), "a rollout")
        executors = [p for p in main.children() if p.name().startswith("executor")]
        assert [p.nice() for p in executors] == [max(10, os.getpriority(os.PRIO_PROCESS, 0))] * 2
    finally:
        main.kill()
        main.wait()


MEASURES = """
from dataclasses import replace
from tests import pretend_gpu
from tests.harness import small_config
from htsrl_cli.bench import microbenchmarks
gpu = pretend_gpu.set_up()
microbenchmarks.resolve_device = lambda key, name: gpu
config = small_config("terminating", "ppo")
for memory in ("none", "gru"):
    config = replace(config, network=replace(config.network, memory=memory))
    rates = microbenchmarks.OneThread.measure(config, 0.05)
    assert rates.devices == ("cpu", "gpu:0", "gpu:0"), rates
    assert rates.bound > 0
pretend_gpu.leave(0)
"""


def test_one_thread_rates_are_measured_on_a_gpu(tmp_path: Path) -> None:
    done = python("-c", MEASURES, folder=tmp_path)
    assert done.returncode == 0, done.stderr


REFUSES = """
import torch
from tests import pretend_gpu
gpu = pretend_gpu.set_up()
torch.use_deterministic_algorithms(True)
numbers = torch.ones(3).to(gpu)
assert numbers.device == gpu and torch.zeros(3, device=gpu).device == gpu
assert (numbers + numbers).cpu().tolist() == [2, 2, 2]
for refused in (
    lambda: numbers + torch.ones(3),
    lambda: torch.ones(3) * numbers,
    lambda: numbers.numpy(),
    lambda: numbers.cumsum(0),
):
    try:
        refused()
    except (RuntimeError, TypeError) as error:
        print(error)
    else:
        print("not refused")
"""


def test_the_pretended_gpu_refuses_what_a_real_one_does(tmp_path: Path) -> None:
    done = python("-c", REFUSES, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "add: tensors of gpu:0 and of the CPU",
        "mul: tensors of gpu:0 and of the CPU",
        ".numpy() is not supported for tensor subclasses.",
        "cumsum has no deterministic implementation on a GPU",
    ]
