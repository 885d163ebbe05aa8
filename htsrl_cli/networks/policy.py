"""Actor-critic networks and the distributions they parameterise.

Shapes: N rows, D action dimensions, P distribution parameters.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from htsrl_cli.config.sections import AlgoConfig, num_policies
from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.networks.activations import CachingLayers, Layer, layout_of, relu_layer
from htsrl_cli.seeding import Purpose, generator
from htsrl_cli.storage.memory import ArrayType

# Smaller images do not survive the Nature CNN's three strides; they are flattened.
NATURE_MIN_SIZE = 36
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class NatureCnn(nn.Module):
    """The convolutional trunk of Mnih et al. (2015): uint8 [N, H, W, C] to [N, 512].

    The slot's (H, W, C) layout viewed as (C, H, W) is channels-last memory: no copy is needed.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 8, stride=4)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3, stride=1)
        # Outputs of conv2. Pixels beyond those they see change nothing and are left out; what
        # remains is a multiple of each layer's stride.
        rows, columns = (((size - 8) // 4 + 1 - 4) // 2 + 1 for size in (height, width))
        self.seen = slice(8 * rows + 12), slice(8 * columns + 12)
        self.fc = nn.Linear(64 * (rows - 2) * (columns - 2), 512)
        self.num_features = 512
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> Tensor:
        x = obs[:, *self.seen].permute(0, 3, 1, 2)
        x = x.to(self.conv1.weight.dtype, memory_format=torch.channels_last)
        # Scaling the weights by 1/255 instead of the pixels saves a pass over the images, and
        # bytes are exact in bf16 where their fractions are not.
        x = _convolve(layer, x, self.conv1.weight * (1 / 255), self.conv1.bias, stride=4)
        x = _convolve(layer, x, self.conv2.weight, self.conv2.bias, stride=2)
        x = layer(x, self.conv3.weight, self.conv3.bias)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            # The linear layer as the convolution that it is: in fp32 torch gives convolutions to
            # oneDNN and products to MKL, which takes twice as long on AMD's processors.
            weight = self.fc.weight.view(-1, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
            return layer(x, weight, self.fc.bias).flatten(1)
        # Flattened in (H, W, C) order, which channels-last memory holds as it is.
        return layer(x.permute(0, 2, 3, 1).flatten(1), self.fc.weight, self.fc.bias)


def _convolve(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A convolution of channels-last images, its stride over columns taken by the memory layout.

    `stride` neighbouring columns are viewed as one column of so many times the channels, and so are
    the kernel's: the same products, and nothing moves. That leaves a stride of 1 over columns and
    more channels, which fill vector registers better.
    """
    return layer(join_columns(x, stride), join_columns(weight, stride), bias, (stride, 1))


def join_columns(x: Tensor, number: int) -> Tensor:
    """Channels-last [N, C, H, W] viewed as [N, number * C, H, W / number]."""
    n, channels, height, width = x.shape
    joined = x.permute(0, 2, 3, 1).reshape(n, height, width // number, number * channels)
    return joined.permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Tanh layers for vectors and small images: [N, ...] to [N, hidden_sizes[-1]]."""

    def __init__(self, spec: EnvSpec, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (math.prod(spec.obs_shape), *hidden_sizes)
        self.scale = 1 / 255 if spec.obs_dtype == "uint8" else 1.0
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.num_features = hidden_sizes[-1]

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.flatten(1).to(next(self.parameters()).dtype) * self.scale
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class ActorCritic(nn.Module):
    """A trunk with a policy and a value head.

    The trunks compute in the policy's precision, the heads in float32: bf16 has 8 bits for a value
    or a logit, and advantages and ratios come from small differences of them. Images of at least
    36x36 take the Nature CNN; everything else two separate perceptrons, as is usual for vector
    observations.
    """

    def __init__(self, spec: EnvSpec, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.actions = spec.actions
        self.trunk: NatureCnn | Mlp
        self.value_trunk: Mlp | None = None
        if len(spec.obs_shape) == 3 and min(spec.obs_shape[:2]) >= NATURE_MIN_SIZE:
            self.trunk = NatureCnn(*spec.obs_shape)
        else:
            self.trunk = Mlp(spec, hidden_sizes)
            self.value_trunk = Mlp(spec, hidden_sizes)
        features = self.trunk.num_features
        self.policy_head = nn.Linear(features, sum(spec.actions.sizes) or spec.actions.num_dims)
        self.value_head = nn.Linear(features, 1)
        if spec.actions.kind == "gaussian":
            self.log_std = nn.Parameter(torch.zeros(spec.actions.num_dims))

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        """Observations [N, *obs_shape] to distribution parameters [N, P] and values [N].

        Args:
            layer: computes the Nature CNN's layers.
        """
        cnn = isinstance(self.trunk, NatureCnn)
        features = (self.trunk(obs, layer) if cnn else self.trunk(obs)).float()
        value_features = features if self.value_trunk is None else self.value_trunk(obs).float()
        params = self.policy_head(features)
        if self.actions.kind == "gaussian":
            params = torch.cat([params, self.log_std.expand_as(params)], dim=1)
        return params, self.value_head(value_features).squeeze(1)


@torch.no_grad()
def initialize(policy: ActorCritic, seed: int, index: int = 0) -> None:
    """Orthogonal weights (gain sqrt(2); 0.01 for the policy head, 1 for the value's), no biases.

    Args:
        seed: the run's seed.
        index: number of the policy in the run.
    """
    numbers = generator(seed, Purpose.PARAMETERS, index)
    rng = torch.Generator().manual_seed(int(numbers.integers(2**63)))
    gains = {id(policy.policy_head): 0.01, id(policy.value_head): 1.0}
    for module in policy.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gain = gains.get(id(module), math.sqrt(2))
            # `orthogonal_` does not fill channels-last memory.
            weight = torch.empty(module.weight.shape)
            module.weight.copy_(nn.init.orthogonal_(weight, gain, generator=rng))
            if module.bias is not None:
                module.bias.zero_()


def build_policy(
    spec: EnvSpec, algo: AlgoConfig, precision: str, device: torch.device
) -> ActorCritic:
    """A policy with trunks in `precision` on `device`, its parameters not yet meaningful."""
    policy = ActorCritic(spec, algo.hidden_sizes).to(device)
    for trunk in (policy.trunk, policy.value_trunk):
        if trunk is not None:
            trunk.to(PRECISIONS[precision])
    return policy


def build_policies(
    spec: EnvSpec, algo: AlgoConfig, precision: str, device: torch.device
) -> nn.ModuleList:
    """The `ActorCritic`s of a run: one for all players, or one for each (`algo.policies`)."""
    count = num_policies(algo, spec.num_players)
    return nn.ModuleList(build_policy(spec, algo, precision, device) for _ in range(count))


@torch.no_grad()
def activation_layout(spec: EnvSpec, algo: AlgoConfig, precision: str) -> list[ArrayType]:
    """Of a row of the activations that can be kept: the Nature CNN's; perceptrons are cheap."""
    policy = build_policy(spec, algo, precision, torch.device("cpu"))
    layers = CachingLayers()
    policy(torch.zeros(1, *spec.obs_shape, dtype=getattr(torch, spec.obs_dtype)), layers)
    return layout_of(layers.outputs)


@torch.no_grad()
def flatten_parameters(policy: nn.Module, flat: Tensor | None = None) -> Tensor:
    """All parameters in order, float32 [P]; `load_parameters` reads it.

    Args:
        flat: where to put them; new memory if None.
    """
    parameters = list(policy.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.empty(sum(sizes)) if flat is None else flat
    for part, parameter in zip(torch.split(flat, sizes), parameters, strict=True):
        part.view(parameter.shape).copy_(parameter)
    return flat


@torch.no_grad()
def load_parameters(policy: nn.Module, flat: Tensor) -> None:
    """Sets all parameters from `flat` [P], rounding to their precision."""
    parameters = list(policy.parameters())
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    for part, parameter in zip(parts, parameters, strict=True):
        parameter.copy_(part.view(parameter.shape))


def sample(actions: ActionSpec, params: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Turns noise [N, D] into actions [N, D] and their log-probabilities [N].

    Categorical actions invert the cumulative distribution at a uniform number; Gaussian ones
    scale a standard normal number. Every row depends on its own inputs only.

    Args:
        params: [N, P].
    """
    if actions.kind == "gaussian":
        mean, log_std = params.chunk(2, dim=1)
        action = mean + log_std.exp() * noise
        return action, _gaussian_log_prob(mean, log_std, action)
    chosen, log_probs = [], torch.zeros_like(noise[:, 0])
    for d, logits in enumerate(torch.split(params, list(actions.sizes), dim=1)):
        log_p = logits.log_softmax(dim=1)
        cumulative = _cumulative(log_p.exp())
        # Rounding may leave the last entry below 1: scale the number, not the distribution.
        threshold = noise[:, d : d + 1] * cumulative[:, -1:]
        choice = (cumulative <= threshold).sum(dim=1, keepdim=True).clamp(max=logits.shape[1] - 1)
        chosen.append(choice)
        log_probs = log_probs + log_p.gather(1, choice).squeeze(1)
    return torch.cat(chosen, dim=1), log_probs


def _cumulative(probabilities: Tensor) -> Tensor:
    """Of [N, n], summed along the rows; on CUDA torch has no deterministic `cumsum`."""
    on_cuda = probabilities.device.type == "cuda"
    return running_sums(probabilities) if on_cuda else probabilities.cumsum(dim=1)


def running_sums(numbers: Tensor) -> Tensor:
    """Cumulative sums along the rows of [N, n], column by column.

    Sums in any other order might fall where nothing negative is added, or rise by a rounding where
    nothing is: an action that is impossible could be drawn.
    """
    sums = list(numbers.unbind(dim=1))
    for column in range(1, len(sums)):
        sums[column] = sums[column - 1] + sums[column]
    return torch.stack(sums, dim=1)


def mode(actions: ActionSpec, params: Tensor) -> Tensor:
    """The most probable action, [N, D]."""
    if actions.kind == "gaussian":
        return params.chunk(2, dim=1)[0]
    choices = [logits.argmax(dim=1) for logits in torch.split(params, list(actions.sizes), dim=1)]
    return torch.stack(choices, dim=1)


def log_prob_entropy(actions: ActionSpec, params: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen actions [N, D], and entropies; both [N]."""
    if actions.kind == "gaussian":
        mean, log_std = params.chunk(2, dim=1)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=1)
        return _gaussian_log_prob(mean, log_std, chosen), entropy
    log_probs = torch.zeros_like(params[:, 0])
    entropy = torch.zeros_like(params[:, 0])
    for d, logits in enumerate(torch.split(params, list(actions.sizes), dim=1)):
        log_p = logits.log_softmax(dim=1)
        # Not `gather`: its gradient is a `scatter_add`, which a GPU can only do deterministically
        # by sorting.
        others = chosen[:, d : d + 1] != torch.arange(logits.shape[1], device=logits.device)
        log_probs = log_probs + log_p.masked_fill(others, 0.0).sum(dim=1)
        entropy = entropy - (log_p.exp() * log_p).sum(dim=1)
    return log_probs, entropy


def _gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    z = (action - mean) * torch.exp(-log_std)
    return (-0.5 * z * z - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=1)
