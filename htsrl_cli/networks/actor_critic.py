"""Actor-critic networks: one or two trunks, an optional memory, and heads for policy and value.

In shapes, N is the number of rows, P the number of distribution parameters, S the numbers of a
memory state, T the number of env steps of a sequence and n the number of sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.activations import Layer, relu_layer
from htsrl_cli.networks.normalizer import ObsNormalizer, RewardNormalizer
from htsrl_cli.networks.recurrent import Memory


class ActorCritic(nn.Module):
    """A network of one or two trunks, a policy head and a value head, with or without a memory.

    A trunk is a module that maps observations as stored in the slot (uint8 or float32
    [N, *obs_shape]) to features [N, num_features]. It has an attribute `num_features` and casts
    observations to the dtype of its parameters. If a trunk's attribute `computes_by_layer` is True,
    its `forward` takes a `Layer` as second argument and calls it to compute each layer. The outputs
    of these layers can then be kept for the learner.

    Trunks compute in the configured precision, memory and heads in float32. Advantages and
    probability ratios come from small differences between values and between logits. The 8
    significant bits of bf16 are too few to represent these differences.

    Args:
        spec: the form of observations and actions.
        trunk: the trunk that computes the policy's features.
        value_trunk: the trunk that computes the value's features; None to share `trunk`.
        memory: the recurrent cells between trunks and heads; None for a policy without memory.

    Attributes:
        memory_width: S; 0 without memory.
        obs_normalizer: the normalization of observations before the trunks; None if there is none.
        reward_normalizer: the normalization of the rewards whose sums are the values; None if there
            is none.
    """

    def __init__(
        self,
        spec: EnvSpec,
        trunk: nn.Module,
        value_trunk: nn.Module | None = None,
        *,
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        self.actions = actions = spec.actions
        self.obs_normalizer = ObsNormalizer(spec.obs_shape) if spec.normalize_obs else None
        self.reward_normalizer = RewardNormalizer() if spec.normalize_reward else None
        self.trunk = trunk
        self.value_trunk = value_trunk
        self.memory = memory
        self.memory_width = memory.width if memory else 0
        num_features: Any = memory.size if memory else trunk.num_features
        num_value_features: Any = memory.size if memory else (value_trunk or trunk).num_features
        self.policy_head = nn.Linear(num_features, sum(actions.sizes) or actions.num_dims)
        self.value_head = nn.Linear(num_value_features, 1)
        if actions.kind == "gaussian":
            self.log_std = nn.Parameter(torch.zeros(actions.num_dims))

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        """Maps observations [N, *obs_shape] to distribution parameters [N, P] and values [N].

        For policies without memory.

        Args:
            layer: the `Layer` that trunks with `computes_by_layer` call for each of their layers.
        """
        assert self.memory is None
        return self._heads(self._features(obs, layer))

    def step(self, obs: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes one env step with memory.

        Args:
            obs: observations [N, *obs_shape].
            states: memory states, float32 [N, S]; 0 where an episode begins.

        Returns:
            Distribution parameters [N, P], values [N], and memory states after the env step [N, S].
        """
        assert self.memory is not None
        outputs, states = self.memory(self._features(obs), states)
        return *self._heads(outputs), states

    def unroll(self, obs: Tensor, states: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Takes all env steps of n sequences with memory; gradients flow back through time.

        Args:
            obs: observations in time-major order [T * n, *obs_shape].
            states: memory states before the first env step, float32 [n, S].
            starts: bool [T, n]; True where an episode begins, so that the state becomes 0.

        Returns:
            Distribution parameters [T * n, P] and values [T * n], in time-major order.
        """
        assert self.memory is not None
        return self._heads(self.memory.unroll(self._features(obs), states, starts))

    def _features(self, obs: Tensor, layer: Layer = relu_layer) -> list[Tensor]:
        """Returns the features of each trunk, float32 [N, num_features]."""
        if self.obs_normalizer is not None:
            obs = self.obs_normalizer(obs)
        trunks = (self.trunk, self.value_trunk)
        return [_features(trunk, obs, layer) for trunk in trunks if trunk is not None]

    def _heads(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps the features of each trunk to distribution parameters [N, P] and values [N]."""
        params = self.policy_head(features[0])
        if self.actions.kind == "gaussian":
            params = torch.cat([params, self.log_std.expand_as(params)], dim=1)
        return params, self.value_head(features[-1]).squeeze(1)


def _features(trunk: nn.Module, obs: Tensor, layer: Layer) -> Tensor:
    made = trunk(obs, layer) if getattr(trunk, "computes_by_layer", False) else trunk(obs)
    features: Tensor = made.float()
    return features


@torch.no_grad()
def initialize(policy: ActorCritic, rng: torch.Generator) -> None:
    """Sets orthogonal weights and zero biases in linear layers and 2-D convolutions.

    The gain is 0.01 for the policy head and 1 for the value head. Elsewhere it is the layer's
    attribute `initial_gain`, or sqrt(2) without this attribute. A memory initializes its own cells.
    Layers of other types keep their initial parameters.
    """
    gains = {id(policy.policy_head): 0.01, id(policy.value_head): 1.0}
    for module in policy.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            usual: Any = getattr(module, "initial_gain", math.sqrt(2))
            gain = gains.get(id(module), usual)
            # `orthogonal_` cannot fill a tensor in channels-last memory.
            weight = torch.empty(module.weight.shape)
            module.weight.copy_(nn.init.orthogonal_(weight, gain, generator=rng))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, Memory):
            module.initialize(rng)
