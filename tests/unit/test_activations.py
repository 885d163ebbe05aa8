"""Layers whose outputs are known have the gradients of layers that are computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from htsrl_cli.activations import Kept, Known, as_array, as_tensor, layout_of
from htsrl_cli.actor import activations_to_keep
from htsrl_cli.config import (
    A2cConfig,
    ActorsConfig,
    AlgoConfig,
    CheckpointConfig,
    LearnerConfig,
    LogConfig,
    PpoConfig,
    RunnerConfig,
    SyntheticConfig,
    TrainConfig,
)
from htsrl_cli.envs import ActionSpec, EnvSpec
from htsrl_cli.policy import NatureCnn
from htsrl_cli.torch_setup import set_up_torch

PIXELS = EnvSpec((84, 84, 4), "uint8", ActionSpec("categorical", (6,)))
VECTORS = EnvSpec((5,), "float32", ActionSpec("categorical", (3,)))


@pytest.fixture(autouse=True)
def _torch_as_in_a_run() -> None:
    set_up_torch()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(84, 84, 4), (72, 96, 16), (61, 55, 3)], ids=str)
def test_gradients_are_those_of_a_network_that_computes(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """Bit for bit: the same backward operations on the same numbers."""
    torch.manual_seed(0)
    cnn = NatureCnn(*shape).to(dtype)
    obs = torch.randint(0, 256, (9, *shape), dtype=torch.uint8)
    weights = torch.randn(9, cnn.num_features)
    kept = Kept()
    computed = cnn(obs, kept)
    assert len(kept.outputs) == 4
    known = cnn(obs, Known([y.detach().clone() for y in kept.outputs]))
    assert torch.equal(known, computed)
    expected, got = (
        torch.autograd.grad((y.float() * weights).sum(), list(cnn.parameters()))
        for y in (computed, known)
    )
    for (name, _), one, other in zip(cnn.named_parameters(), expected, got, strict=True):
        assert torch.equal(one, other), name
        assert one.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_arrays_hold_the_bits_of_outputs(dtype: torch.dtype) -> None:
    output = torch.randn(3, 4, 2).to(dtype)
    [(shape, name)] = layout_of([output])
    array = as_array(output)
    assert (array.shape[1:], array.dtype.name) == (shape, name)
    assert torch.equal(as_tensor(array.copy()), output)


RUN = TrainConfig(
    env=SyntheticConfig("count"),
    algo=A2cConfig(),
    actors=ActorsConfig(num_envs=4, device="cpu"),
    learner=LearnerConfig(device="cpu"),
    runner=RunnerConfig(),
    checkpoint=CheckpointConfig(),
    log=LogConfig(),
    total_steps=100,
)


def with_precisions(actors: str, learner: str, algo: AlgoConfig) -> TrainConfig:
    return replace(
        RUN,
        algo=algo,
        actors=replace(RUN.actors, precision=actors),
        learner=replace(RUN.learner, precision=learner),
    )


def test_activations_are_kept_where_the_learners_pass_would_be_the_actors() -> None:
    assert activations_to_keep(RUN, PIXELS) == [
        ((20, 20, 32), "float32"),
        ((9, 9, 64), "float32"),
        ((7, 7, 64), "float32"),
        ((1, 1, 512), "float32"),
    ]
    assert activations_to_keep(with_precisions("bf16", "bf16", A2cConfig()), PIXELS) == [
        ((20, 20, 32), "uint16"),
        ((9, 9, 64), "uint16"),
        ((7, 7, 64), "uint16"),
        ((512,), "uint16"),
    ]


def test_activations_are_not_kept_elsewhere() -> None:
    """PPO differentiates at newer parameters; perceptrons cost next to nothing."""
    assert activations_to_keep(with_precisions("fp32", "bf16", A2cConfig()), PIXELS) == []
    assert activations_to_keep(with_precisions("fp32", "fp32", PpoConfig()), PIXELS) == []
    assert activations_to_keep(RUN, VECTORS) == []
