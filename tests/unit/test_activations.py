"""Tests that layers with cached outputs have the gradients of layers that compute them."""

from __future__ import annotations

import pytest
import torch

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.networks.activations import (
    CachedLayers,
    CachingLayers,
    as_array,
    as_tensor,
    layout_of,
)
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.nature_cnn.network import NatureCnn
from htsrl_cli.sampling import inference as inference_module
from htsrl_cli.sampling.inference import activations_to_keep
from htsrl_cli.storage.memory import ArrayType
from tests import sections

PIXELS = EnvSpec((84, 84, 4), "uint8", ActionSpec("categorical", (6,)))
VECTORS = EnvSpec((5,), "float32", ActionSpec("categorical", (3,)))


@pytest.fixture(autouse=True)
def _torch_as_in_a_run() -> None:
    set_up_torch()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(84, 84, 4), (72, 96, 16), (61, 55, 3)], ids=str)
@pytest.mark.parametrize("kernel", ["product", "convolution"])
def test_gradients_are_those_of_a_network_that_computes(
    kernel: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    # Bit for bit: the backward operations and their inputs are the same.
    torch.manual_seed(0)
    cnn = NatureCnn(EnvSpec(shape, "uint8", ActionSpec("categorical", (2,))), kernel).to(dtype)
    obs = torch.randint(0, 256, (9, *shape), dtype=torch.uint8)
    weights = torch.randn(9, cnn.num_features)
    layers = CachingLayers()
    computed = cnn(obs, layers)
    assert len(layers.outputs) == 4
    cached = cnn(obs, CachedLayers([y.detach().clone() for y in layers.outputs]))
    assert torch.equal(cached, computed)
    expected, got = (
        torch.autograd.grad((y.float() * weights).sum(), list(cnn.parameters()))
        for y in (computed, cached)
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


def kept(
    spec: EnvSpec, algo: AlgoConfig, actors: str = "fp32", learner: str = "fp32"
) -> list[ArrayType]:
    """Returns the layout of the activations that are kept with these precisions."""
    config = sections.train(
        algo=algo,
        actors=sections.actors(device="cpu", precision=actors),
        learner=sections.learner(device="cpu", precision=learner),
    )
    return activations_to_keep(spec, config)


def test_activations_are_kept_where_the_learners_pass_would_be_the_actors() -> None:
    assert kept(PIXELS, sections.a2c()) == [
        ((20, 20, 32), "float32"),
        ((9, 9, 64), "float32"),
        ((7, 7, 64), "float32"),
        ((512,), "float32"),
    ]
    assert kept(PIXELS, sections.a2c(), "bf16", "bf16") == [
        ((20, 20, 32), "uint16"),
        ((9, 9, 64), "uint16"),
        ((7, 7, 64), "uint16"),
        ((512,), "uint16"),
    ]


def test_activations_are_not_kept_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # PPO differentiates at newer parameters, and a perceptron's forward pass is cheap.
    assert kept(PIXELS, sections.a2c(), "fp32", "bf16") == []
    assert kept(PIXELS, sections.ppo()) == []
    assert kept(VECTORS, sections.a2c()) == []
    for on_gpu in ({"actors.device"}, {"learner.device"}, {"actors.device", "learner.device"}):

        def resolve(key: str, _: str, on_gpu: set[str] = on_gpu) -> torch.device:
            return torch.device("cuda" if key in on_gpu else "cpu")

        monkeypatch.setattr(inference_module, "resolve_device", resolve)
        assert kept(PIXELS, sections.a2c()) == []
