"""Tests of networks against plain ones, and of distributions against torch's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as fn

from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.errors import ConfigError
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.actor_critic import ActorCritic, initialize
from htsrl_cli.networks.distributions import log_prob_entropy, most_likely, running_sums, sample
from htsrl_cli.networks.impala_resnet.network import ImpalaResnet
from htsrl_cli.networks.mlp.network import Mlp
from htsrl_cli.networks.nature_cnn.network import NatureCnn, join_columns
from htsrl_cli.networks.registry import PRECISIONS, build_policy, initial_policies
from htsrl_cli.networks.small_cnn.network import SmallCnn
from htsrl_cli.sampling.inference import Inference, InferenceSetup
from htsrl_cli.storage.parameters import ParameterStore
from tests import sections

SINGLE = ActionSpec("categorical", sizes=(4,))
MULTI = ActionSpec("categorical", sizes=(3, 2, 5))
GAUSSIAN = ActionSpec("gaussian", low=(-1.0, -2.0), high=(1.0, 2.0))
VECTORS = EnvSpec((6,), "float32", SINGLE)
PIXELS = EnvSpec((84, 84, 4), "uint8", SINGLE)
WIDE = EnvSpec((72, 96, 16), "uint8", SINGLE)
# No stride divides the sides of these images.
ODD = EnvSpec((61, 55, 3), "uint8", SINGLE)
BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_obs(spec: EnvSpec, num_rows: int, seed: int = 0) -> Tensor:
    if spec.obs_dtype == "float32":
        return randn(num_rows, *spec.obs_shape, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_rows, *spec.obs_shape), generator=rng, dtype=torch.uint8)


def make_policy(
    spec: EnvSpec, precision: str = "fp32", seed: int = 0, network: str = "auto", **keys: Any
) -> ActorCritic:
    config = sections.network(network, **keys)
    policy = build_policy(spec, config, precision, torch.device("cpu"))
    initialize(policy, torch.Generator().manual_seed(seed))
    return policy


def even(num: int) -> Tensor:
    """Returns `num` evenly spaced uniform numbers, [num, 1], which sample exact frequencies."""
    return ((torch.arange(num, dtype=torch.float32) + 0.5) / num).unsqueeze(1)


# Sampling


def test_sampled_frequencies_are_the_probabilities() -> None:
    # Evenly spaced numbers: a category's count is off by less than one at each end of its range.
    logits = torch.tensor([[0.3, -2.0, 1.5, 0.0]])
    actions, _ = sample(SINGLE, logits.expand(10_000, -1), even(10_000))
    shares = torch.bincount(actions[:, 0], minlength=4) / 10_000
    torch.testing.assert_close(shares, logits.softmax(1)[0], atol=2e-4, rtol=0)


def test_each_dimension_of_a_multi_categorical_has_its_own_distribution_and_number() -> None:
    params = torch.tensor([0.5, 0.0, -1.0, 0.2, -0.2, 1.0, 0.0, 2.0, -3.0, 0.1]).expand(5_000, -1)
    numbers = torch.rand(5_000, 3, generator=torch.Generator().manual_seed(0))
    for d, logits in enumerate(torch.split(params, list(MULTI.sizes), dim=1)):
        noise = numbers.clone()
        noise[:, d] = even(5_000)[:, 0]
        actions, _ = sample(MULTI, params, noise)
        shares = torch.bincount(actions[:, d], minlength=logits.shape[1]) / 5_000
        torch.testing.assert_close(shares, logits.softmax(1)[0], atol=4e-4, rtol=0)


@pytest.mark.parametrize("noise", [0.0, BELOW_1])
@pytest.mark.parametrize(
    ("logits", "lowest", "highest"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0, 3),
        # Categories of probability 0 never occur, not even at the ends.
        ([-1e9, 0.0, 0.0, -1e9], 1, 2),
        ([-1e9, -1e9, 5.0, -1e9], 2, 2),
        ([0.0, -1e9, -1e9, 0.0], 0, 3),
        ([1e4, 0.0, 0.0, 0.0], 0, 0),
    ],
)
def test_the_ends_of_the_unit_interval(
    noise: float, logits: list[float], lowest: int, highest: int
) -> None:
    actions, log_probs = sample(SINGLE, torch.tensor([logits]), torch.tensor([[noise]]))
    assert int(actions) == (lowest if noise == 0 else highest)
    assert float(log_probs) > -2


def test_no_number_leaves_the_distribution() -> None:
    # Rounded cumulative sums over many categories may stay below 1; the largest number must fit.
    many = ActionSpec("categorical", sizes=(1000,))
    logits = 3 * randn(2000, 1000)
    logits[:, -1] = -1e9
    actions, log_probs = sample(many, logits, torch.full((2000, 1), BELOW_1))
    assert int(actions.max()) < 999
    assert torch.isfinite(log_probs).all()
    assert float(log_probs.min()) > -1e3


def test_running_sums_never_fall_and_rise_only_where_something_is_added() -> None:
    # `cumsum` on a GPU may fall or rise where nothing is added.
    probabilities = (3 * randn(2000, 50)).softmax(dim=1)
    probabilities[:, 10:20] = 0
    sums = running_sums(probabilities)
    assert torch.allclose(sums, probabilities.cumsum(dim=1))
    assert (sums.diff(dim=1) >= 0).all()
    assert torch.equal(sums[:, 9:10].expand(-1, 11), sums[:, 9:20])


def test_larger_numbers_choose_later_actions() -> None:
    actions, _ = sample(SINGLE, randn(1, 4).expand(100, -1), even(100))
    assert (actions.diff(dim=0) >= 0).all()
    assert set(actions[:, 0].tolist()) == {0, 1, 2, 3}


def test_gaussian_actions_are_scaled_noise() -> None:
    # Mean (1, -1), log standard deviation (0, log 2).
    params = torch.tensor([[1.0, -1.0, 0.0, math.log(2)]])
    actions, _ = sample(GAUSSIAN, params, torch.tensor([[0.5, -1.5]]))
    torch.testing.assert_close(actions, torch.tensor([[1.5, -4.0]]))


@pytest.mark.parametrize("actions", [SINGLE, MULTI, GAUSSIAN], ids=["single", "multi", "gaussian"])
def test_log_probs_and_entropies_are_those_of_torch(actions: ActionSpec) -> None:
    noise = torch.rand(50, actions.num_dims, generator=torch.Generator().manual_seed(1))
    params = randn(50, sum(actions.sizes) or 2 * actions.num_dims)
    chosen, sampled_log_probs = sample(actions, params, noise)
    log_probs, entropies = log_prob_entropy(actions, params, chosen)
    if actions.kind == "gaussian":
        normal = Normal(params[:, :2], params[:, 2:].exp())
        expected = normal.log_prob(chosen).sum(1)  # type: ignore[no-untyped-call]
        expected_entropy = normal.entropy().sum(1)  # type: ignore[no-untyped-call]
    else:
        parts = [
            Categorical(logits=logits) for logits in torch.split(params, list(actions.sizes), dim=1)
        ]
        expected, expected_entropy = torch.zeros(50), torch.zeros(50)
        for d, part in enumerate(parts):
            expected += part.log_prob(chosen[:, d])  # type: ignore[no-untyped-call]
            expected_entropy += part.entropy()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(sampled_log_probs, expected)
    torch.testing.assert_close(entropies, expected_entropy)


@pytest.mark.parametrize(("actions", "dtype"), [(MULTI, torch.int64), (GAUSSIAN, torch.float32)])
def test_actions_have_the_shape_and_dtype_of_a_slot(
    actions: ActionSpec, dtype: torch.dtype
) -> None:
    params = randn(7, sum(actions.sizes) or 2 * actions.num_dims)
    noise = torch.full((7, actions.num_dims), 0.5)
    for choose in (sample, most_likely):
        chosen, log_probs = choose(actions, params, noise)
        assert (log_probs.shape, log_probs.dtype) == ((7,), torch.float32)
        assert chosen.shape == (7, actions.num_dims)
        assert chosen.dtype == dtype == getattr(torch, actions.dtype)


def test_the_most_likely_action_is_taken_whatever_the_noise() -> None:
    params, noise = randn(20, 10), torch.full((20, 3), BELOW_1)
    expected = [part.argmax(1).tolist() for part in torch.split(params, list(MULTI.sizes), dim=1)]
    chosen, log_probs = most_likely(MULTI, params, noise)
    assert chosen.T.tolist() == expected
    assert torch.equal(log_probs, log_prob_entropy(MULTI, params, chosen)[0])
    chosen, log_probs = most_likely(GAUSSIAN, params[:, :4], noise[:, :2])
    assert torch.equal(chosen, params[:, :2])
    assert torch.equal(log_probs, log_prob_entropy(GAUSSIAN, params[:, :4], chosen)[0])


# Networks


def plain_nature_cnn(cnn: NatureCnn, obs: Tensor) -> Tensor:
    """Applies the network to contiguous channels-first float64 images, divided by 255.

    Features are in (C, H, W) order.
    """
    x = obs.permute(0, 3, 1, 2).contiguous().double() / 255
    for layer, stride in ((cnn.conv1, 4), (cnn.conv2, 2), (cnn.conv3, 1)):
        assert layer.bias is not None
        x = fn.relu(fn.conv2d(x, layer.weight.double().contiguous(), layer.bias.double(), stride))
    _, channels, rows, columns = x.shape
    # The layer's weights expect features in (H, W, C) order.
    by_position = cnn.fc.weight.double().view(-1, rows, columns, channels)
    weight = by_position.permute(0, 3, 1, 2).flatten(1)
    return fn.relu(fn.linear(x.flatten(1), weight, cnn.fc.bias.double()))


def test_small_cnn_equals_a_plain_one() -> None:
    spec = EnvSpec((10, 9, 4), "uint8", ActionSpec("categorical", (3,)), obs_max=1)
    obs = torch.randint(0, 2, (5, *spec.obs_shape), generator=torch.Generator().manual_seed(0))
    trunk = SmallCnn(spec)
    got = trunk(obs.to(torch.uint8))
    x = obs.permute(0, 3, 1, 2).contiguous().double()
    weight, bias = trunk.conv.weight.double().contiguous(), trunk.conv.bias
    assert bias is not None
    x = fn.relu(fn.conv2d(x, weight, bias.double())).permute(0, 2, 3, 1).flatten(1)
    expected = fn.relu(fn.linear(x, trunk.fc.weight.double(), trunk.fc.bias.double()))
    assert got.shape == (5, 128)
    assert (trunk.conv.weight.shape, trunk.num_features) == ((16, 4, 3, 3), 128)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", [PIXELS, WIDE, ODD], ids=["84x84x4", "72x96x16", "61x55x3"])
def test_nature_cnn_equals_a_plain_one(spec: EnvSpec) -> None:
    # Compares float32 with float64, and bf16, whose mantissas have 8 bits, with both.
    obs = random_obs(spec, 3)
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 5e-2)):
        policy = make_policy(spec, precision)
        assert isinstance(policy.trunk, NatureCnn)
        with torch.no_grad():
            for layer in (policy.trunk.conv1, policy.trunk.conv2, policy.trunk.conv3):
                assert layer.bias is not None
                layer.bias += 0.05
            expected = plain_nature_cnn(policy.trunk, obs)
            got = policy.trunk(obs).double()
        assert got.shape == (3, 512)
        assert float((got - expected).norm() / expected.norm()) < tolerance


def plain_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return fn.conv2d(x, conv.weight.double().contiguous(), conv.bias.double(), padding=1)


def plain_impala_resnet(trunk: ImpalaResnet, obs: Tensor) -> Tensor:
    """Applies the network to contiguous channels-first float64 images, divided by 255."""
    x = obs.permute(0, 3, 1, 2).contiguous().double() / 255
    for section in trunk.sections:
        assert isinstance(section.conv, nn.Conv2d)
        x = fn.max_pool2d(plain_conv(x, section.conv), 3, 2, 1)
        for block in section.get_submodule("blocks").children():
            first, second = block.children()
            assert isinstance(first, nn.Conv2d)
            assert isinstance(second, nn.Conv2d)
            x = x + plain_conv(fn.relu(plain_conv(fn.relu(x), first)), second)
    features = fn.relu(x).permute(0, 2, 3, 1).flatten(1)
    return fn.relu(fn.linear(features, trunk.fc.weight.double(), trunk.fc.bias.double()))


@pytest.mark.parametrize("shape", [(84, 84, 4), (61, 55, 3), (7, 30, 2), (1, 1, 1)], ids=str)
def test_impala_resnet_equals_a_plain_one(shape: tuple[int, int, int]) -> None:
    spec = EnvSpec(shape, "uint8", SINGLE)
    obs = random_obs(spec, 3)
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 5e-2)):
        policy = make_policy(spec, precision, network="impala_resnet")
        trunk = policy.trunk
        assert isinstance(trunk, ImpalaResnet)
        convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
        assert [conv.out_channels for conv in convolutions] == [16] * 5 + [32] * 10
        with torch.no_grad():
            for conv in convolutions:
                assert conv.bias is not None
                conv.bias += 0.05
            expected = plain_impala_resnet(trunk, obs)
            got = trunk(obs).double()
        assert got.shape == (3, 256)
        assert float((got - expected).norm() / expected.norm()) < tolerance


def test_impala_resnet_starts_with_small_logits_and_values() -> None:
    policy = make_policy(PIXELS, network="impala_resnet")
    with torch.no_grad():
        params, values = policy(random_obs(PIXELS, 8))
    assert float(params.abs().max()) < 0.1
    assert float(values.abs().max()) < 4


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        ("nature_cnn", (35, 80, 3), "images of at least 36 x 36 pixels"),
        ("nature_cnn", (80,), "images of at least 36 x 36 pixels"),
        ("small_cnn", (30, 2, 4), "images of at least 3 x 3 pixels"),
        ("small_cnn", (30,), "images of at least 3 x 3 pixels"),
        ("impala_resnet", (30,), "needs images, but"),
    ],
)
def test_observations_that_do_not_fit_a_network_are_refused_in_one_line(
    network: str, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make_policy(EnvSpec(shape, "uint8", SINGLE), network=network)
    assert str(list(shape)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(36, 90, 3), (90, 37, 1)], ids=str)
@pytest.mark.parametrize("network", ["nature_cnn", "small_cnn", "impala_resnet"])
def test_images_need_not_be_square(network: str, shape: tuple[int, int, int]) -> None:
    spec = EnvSpec(shape, "uint8", SINGLE)
    params, values = make_policy(spec, network=network)(random_obs(spec, 2))
    assert (params.shape, values.shape) == ((2, 4), (2,))


def test_columns_are_joined_without_a_copy() -> None:
    cnn = make_policy(PIXELS, "bf16").trunk
    assert isinstance(cnn, NatureCnn)
    images = randn(3, 20, 20, 32).permute(0, 3, 1, 2)
    for x, stride in ((cnn.conv1.weight, 4), (cnn.conv2.weight, 2), (images, 2)):
        joined = join_columns(x, stride)
        n, channels, height, width = x.shape
        assert joined.shape == (n, stride * channels, height, width // stride)
        assert joined.is_contiguous(memory_format=torch.channels_last)
        assert joined.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("spec", "scale"),
    [(VECTORS, 1.0), (EnvSpec((4, 4, 2), "uint8", SINGLE), 1 / 255)],
    ids=["vector", "small-image"],
)
def test_everything_else_takes_two_perceptrons(spec: EnvSpec, scale: float) -> None:
    policy = make_policy(spec)
    obs = random_obs(spec, 5)
    heads = [policy.policy_head, policy.value_head]
    for trunk, head, got in zip(
        (policy.trunk, policy.value_trunk), heads, policy(obs), strict=True
    ):
        assert trunk is not None
        x = obs.flatten(1).double() * scale
        for layer in trunk.get_submodule("layers").children():
            assert isinstance(layer, nn.Linear)
            x = torch.tanh(fn.linear(x, layer.weight.double(), layer.bias.double()))
        expected = fn.linear(x, head.weight.double(), head.bias.double())
        torch.testing.assert_close(got.double().view_as(expected), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["tanh", "relu", "elu", "silu", "gelu"])
def test_the_activation_of_a_perceptron_is_a_choice(name: str) -> None:
    policy = make_policy(VECTORS, network="mlp", activation=name, hidden_sizes=(5,))
    x = random_obs(VECTORS, 4)
    [layer] = policy.trunk.get_submodule("layers").children()
    activation = {
        "tanh": nn.Tanh(), "relu": nn.ReLU(), "elu": nn.ELU(), "silu": nn.SiLU(), "gelu": nn.GELU()
    }[name]  # fmt: skip
    torch.testing.assert_close(policy.trunk(x), activation(layer(x)))


@pytest.mark.parametrize("network", ["mlp", "auto"])
def test_a_perceptron_serves_policy_and_value_or_each_has_its_own(network: str) -> None:
    own = make_policy(VECTORS, network=network)
    assert isinstance(own.value_trunk, Mlp)
    shared = make_policy(VECTORS, network=network, separate_value=False)
    assert shared.value_trunk is None
    x = random_obs(VECTORS, 4)
    expected = shared.value_head(shared.trunk(x)).squeeze(1)
    torch.testing.assert_close(shared(x)[1], expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("spec", [PIXELS, VECTORS], ids=["pixels", "vectors"])
def test_outputs_are_float32(spec: EnvSpec, precision: str) -> None:
    policy = make_policy(spec, precision)
    for name, p in policy.named_parameters():
        assert p.dtype == (PRECISIONS[precision] if "trunk" in name else torch.float32), name
    params, values = policy(random_obs(spec, 3))
    assert (params.dtype, params.shape) == (torch.float32, (3, 4))
    assert (values.dtype, values.shape) == (torch.float32, (3,))


def test_a_gaussian_policy_has_a_standard_deviation_for_each_dimension() -> None:
    policy = make_policy(EnvSpec((6,), "float32", GAUSSIAN))
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([0.5, -1.0]))
    params, _ = policy(randn(3, 6))
    assert params.shape == (3, 4)
    assert params[:, 2:].tolist() == [[0.5, -1.0]] * 3


# Parameters


@pytest.mark.parametrize("spec", [PIXELS, VECTORS], ids=["pixels", "vectors"])
def test_initial_weights_are_orthogonal(spec: EnvSpec) -> None:
    # Gains are sqrt(2), 0.01 for the policy head and 1 for the value head; there are no biases.
    policy = make_policy(spec)
    gains: dict[nn.Module, float] = {policy.policy_head: 0.01, policy.value_head: 1.0}
    layers = [m for m in policy.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == 6
    for layer in layers:
        flat = layer.weight.detach().flatten(1).double()
        gram = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
        expected = torch.eye(len(gram), dtype=torch.float64) * gains.get(layer, math.sqrt(2)) ** 2
        torch.testing.assert_close(gram, expected, atol=1e-5, rtol=0)
        assert layer.bias is not None
        assert not layer.bias.any()


def initial(seed: int) -> bytes:
    """Returns the bytes of all initial parameters of a run with this seed."""
    policies = initial_policies(VECTORS, sections.network(), sections.a2c(), seed)
    return b"".join(p.detach().numpy().tobytes() for p in policies.parameters())


def test_initial_parameters_are_a_function_of_the_seed() -> None:
    torch.manual_seed(0)
    one = initial(seed=4)
    torch.manual_seed(1)
    assert initial(seed=4) == one
    assert initial(seed=5) != one


def published(spec: EnvSpec, precision: str) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Returns a learner's policies, and those of an actor that has loaded what it published."""
    network, algo, cpu = sections.network(), sections.a2c(), torch.device("cpu")
    config = sections.learner(device="cpu")
    learner = Learner(spec, network, algo, config, cpu, num_updates=1, lag=1, seed=1)
    store = ParameterStore({n: (a.shape, a.dtype.name) for n, a in learner.parameters().items()})
    learner.write_parameters(store.place(0))
    store.publish(0)
    learner.close()
    actor = Inference(InferenceSetup(spec, network, algo, 4, False, "cpu", precision, False))
    actor.load(store.values)
    return learner.policies, actor.policies


@pytest.mark.parametrize("spec", [PIXELS, VECTORS], ids=["pixels", "vectors"])
def test_published_parameters_are_the_same_policy(spec: EnvSpec) -> None:
    one, other = published(spec, "fp32")
    for (name, expected), got in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, got), name
        assert expected.stride() == got.stride(), name
    obs = random_obs(spec, 4)
    for expected, got in zip(one[0](obs), other[0](obs), strict=True):
        assert torch.equal(expected, got)


def test_bf16_rounds_the_trunks_and_not_the_heads() -> None:
    exact, rounded = published(VECTORS, "bf16")
    loaded = dict(rounded.named_parameters())
    for name, p in exact.named_parameters():
        assert torch.equal(loaded[name].float(), p.bfloat16().float() if "trunk" in name else p)


def test_bf16_values_are_finer_than_bf16() -> None:
    # In bf16, a value of about 60 would move in steps of a quarter.
    policy = make_policy(VECTORS, "bf16")
    with torch.no_grad():
        policy.value_head.bias.fill_(60.0)
    values = policy(random_obs(VECTORS, 64))[1]
    assert not torch.equal(values, values.bfloat16().float())
    assert len(values.unique()) > 32
