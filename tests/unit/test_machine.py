"""Tests of the values that `auto` stands for, and of the versions and machine of a run."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import htsrl_cli
from htsrl_cli import machine
from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.plain import to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.networks.auto.config import AutoConfig
from htsrl_cli.networks.nature_cnn.config import NatureCnnConfig
from htsrl_cli.runners import provenance
from tests import sections

PONG = sections.atari("pong")


def config(*words: str) -> TrainConfig:
    return to_train_config(Composer("train").job(words))


@pytest.fixture
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: 6)


@pytest.mark.usefixtures("six_cores")
@pytest.mark.parametrize(("num_envs", "executors"), [(16, 6), (6, 6), (5, 5), (7, 6), (1, 1)])
def test_an_executor_for_each_core_or_environment(num_envs: int, executors: int) -> None:
    words = [f"actors.num_envs={num_envs}", "actors.num_executors=auto"]
    assert config("env=synthetic/count", *words).actors.num_executors == executors


@pytest.mark.usefixtures("six_cores")
@pytest.mark.parametrize(
    ("words", "instructions", "executors"),
    [
        ((), "avx512f", 3),
        (("algo=a2c",), "avx512f", 6),
        (("algo=a2c",), "avx2", 3),
        (("learner.device=cuda:0",), "avx512f", 6),
        (("runner=sync",), "avx512f", 6),
    ],
)
def test_atari_leaves_cores_to_a_learner_that_needs_them(
    words: tuple[str, ...], instructions: str, executors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_words", lambda: {instructions})
    made = config("env=atari/pong", "actors.num_envs=12", *words)
    assert made.actors.num_executors == executors


@pytest.mark.usefixtures("six_cores")
def test_worker_counts_are_auto_by_default_and_numbers_are_kept() -> None:
    made = config("env=synthetic/count", "learner.device=cpu")
    assert (made.actors.num_executors, made.actors.num_actors, made.learner.num_threads) == (
        6,
        1,
        6,
    )
    made = config("learner.num_threads=3", "actors.num_executors=2", "actors.num_actors=2")
    assert (made.actors.num_executors, made.actors.num_actors, made.learner.num_threads) == (
        2,
        2,
        3,
    )


def test_rendered_football_has_an_executor_for_each_environment() -> None:
    words = ["env=football/academy_empty_goal", "env.representation=pixels_gray"]
    assert config(*words).actors.num_executors == 16


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: has_bf16)
    words = [f"{role}.{key}" for role in ("actors", "learner") for key in ("device=cpu",)]
    made = config(*words, "actors.precision=auto", "learner.precision=auto")
    assert (made.actors.precision, made.learner.precision) == (precision, precision)


@pytest.mark.parametrize(
    ("words", "kernel"),
    [
        ({"AuthenticAMD", "avx2"}, "product"),
        ({"AuthenticAMD", "avx2", "avx512f", "avx512_bf16"}, "convolution"),
        ({"GenuineIntel", "avx2", "avx512f"}, "product"),
        (set[str](), "product"),
    ],
)
def test_kernels_follow_the_processor(
    monkeypatch: pytest.MonkeyPatch, words: set[str], kernel: str
) -> None:
    monkeypatch.setattr(machine, "cpu_words", lambda: words)
    for network in ("auto", "nature_cnn"):
        made = config(f"network={network}").network
        assert isinstance(made, AutoConfig | NatureCnnConfig)
        assert made.linear_kernel == kernel
    made = config("network.linear_kernel=convolution").network
    assert isinstance(made, AutoConfig)
    assert made.linear_kernel == "convolution"


def test_a_gpu_multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    made = config("learner.device=cuda:0", "learner.precision=auto", "learner.num_threads=auto")
    assert (made.learner.precision, made.learner.num_threads) == ("bf16", 1)


@pytest.mark.parametrize(
    ("device", "num_envs", "inference_batch", "micro_batch"),
    [
        ("cpu", 128, 32, 256),
        ("cpu", 32, 16, 256),
        ("cpu", 16, 8, 256),
        ("cpu", 9, 8, 256),
        ("cpu", 5, 5, 256),
        ("cuda:0", 128, 64, 8192),
        ("cuda:0", 16, 16, 8192),
    ],
)
def test_batches_suit_the_device(
    device: str, num_envs: int, inference_batch: int, micro_batch: int
) -> None:
    devices = [f"actors.device={device}", f"learner.device={device}"]
    made = config(*devices, f"actors.num_envs={num_envs}")
    assert made.actors.inference_batch == inference_batch
    assert made.learner.micro_batch == micro_batch
    team = config("env=football/academy_corner", "env.num_left_players=3", *devices)
    assert team.actors.inference_batch == (24 if device == "cpu" else 48)
    made = config(*devices, "actors.inference_batch=3", "learner.micro_batch=5")
    assert (made.actors.inference_batch, made.learner.micro_batch) == (3, 5)


def test_a_stored_choice_is_kept_on_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_words", lambda: {"AuthenticAMD", "avx512f"})
    stored = config("env=atari/pong")
    monkeypatch.setattr(machine, "cpu_words", lambda: {"AuthenticAMD", "avx2"})
    assert load_train_config(to_plain(stored)) == stored
    assert config("env=atari/pong") != stored


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n"
            "model name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2\n\nprocessor\t: 1\n",
            "AMD EPYC 9R14 (family 25, model 17)",
        ),
        ("processor\t: 0\nBogoMIPS\t: 2100.00\n", platform.machine()),
    ],
)
def test_name_of_the_processor(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.processor(tmp_path / "cpuinfo") == name
    assert machine.processor(tmp_path / "none") == (platform.processor() or platform.machine())


@pytest.mark.parametrize(("env", "own"), [(sections.gym("CartPole-v1"), []), (PONG, ["ale-py"])])
def test_versions_and_machine_of_a_run(env: EnvConfig, own: list[str]) -> None:
    actors, learner = sections.actors(device="cpu"), sections.learner(device="cpu")
    made = sections.train(env=env, actors=actors, learner=learner)
    names = ["torch", "numpy", "gymnasium", *own]
    assert provenance.versions(made) == {
        "htsrl": htsrl_cli.__version__,
        "python": platform.python_version(),
    } | {name: version(name) for name in names}
    assert provenance.machine(made) == {
        "processor": machine.processor(),
        "cores": machine.num_cores(),
        "gpu": None,
        "platform": platform.platform(),
    }


@pytest.mark.parametrize(
    ("actors", "learner", "gpu"),
    [("cpu", "cuda:1", "GPU 1"), ("cuda:1", "cpu", "GPU 1"), ("cuda:1", "cuda:0", "GPU 0")],
)
def test_the_gpu_of_a_run_is_the_learners(
    monkeypatch: pytest.MonkeyPatch, actors: str, learner: str, gpu: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    made = sections.train(
        actors=sections.actors(device=actors), learner=sections.learner(device=learner)
    )
    assert provenance.machine(made)["gpu"] == gpu


def test_a_package_without_metadata_has_no_version() -> None:
    assert machine.package_versions("numpy", "no-such-package") == {"numpy": version("numpy")}
