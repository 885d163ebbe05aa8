"""Actor-critic networks: one or two trunks, and heads for the policy and the value.

In shapes, N is the number of rows and P is the number of distribution parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.activations import Layer, relu_layer
from htsrl_cli.networks.normalizer import ObsNormalizer, RewardNormalizer


class ActorCritic(nn.Module):
    """A network of one or two trunks with a policy head and a value head.

    A trunk is a module that maps observations as stored in the slot (uint8 or float32
    [N, *obs_shape]) to features [N, num_features]. It has an attribute `num_features` and casts
    observations to the dtype of its parameters. If a trunk's attribute `computes_by_layer` is True,
    its `forward` takes a `Layer` as second argument and calls it to compute each layer. The outputs
    of these layers can then be kept for the learner.

    Trunks compute in the configured precision, heads in float32. Advantages and probability ratios
    come from small differences between values and between logits. The 8 significant bits of bf16
    are too few to represent these differences.

    Args:
        spec: the form of observations and actions.
        trunk: the trunk that computes the policy's features.
        value_trunk: the trunk that computes the value's features; None to share `trunk`.

    Attributes:
        obs_normalizer: the normalization of observations before the trunks; None if there is none.
        reward_normalizer: the normalization of the rewards whose sums are the values; None if there
            is none.
    """

    def __init__(
        self, spec: EnvSpec, trunk: nn.Module, value_trunk: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.actions = actions = spec.actions
        self.obs_normalizer = ObsNormalizer(spec.obs_shape) if spec.normalize_obs else None
        self.reward_normalizer = RewardNormalizer() if spec.normalize_reward else None
        self.trunk = trunk
        self.value_trunk = value_trunk
        num_features: Any = trunk.num_features
        num_value_features: Any = (value_trunk or trunk).num_features
        self.policy_head = nn.Linear(num_features, sum(actions.sizes) or actions.num_dims)
        self.value_head = nn.Linear(num_value_features, 1)
        if actions.kind == "gaussian":
            self.log_std = nn.Parameter(torch.zeros(actions.num_dims))

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        """Maps observations [N, *obs_shape] to distribution parameters [N, P] and values [N].

        Args:
            layer: the `Layer` that trunks with `computes_by_layer` call for each of their layers.
        """
        if self.obs_normalizer is not None:
            obs = self.obs_normalizer(obs)
        features = _features(self.trunk, obs, layer)
        value_features = features
        if self.value_trunk is not None:
            value_features = _features(self.value_trunk, obs, layer)
        params = self.policy_head(features)
        if self.actions.kind == "gaussian":
            params = torch.cat([params, self.log_std.expand_as(params)], dim=1)
        return params, self.value_head(value_features).squeeze(1)


def _features(trunk: nn.Module, obs: Tensor, layer: Layer) -> Tensor:
    made = trunk(obs, layer) if getattr(trunk, "computes_by_layer", False) else trunk(obs)
    features: Tensor = made.float()
    return features


@torch.no_grad()
def initialize(policy: ActorCritic, rng: torch.Generator) -> None:
    """Sets orthogonal weights and zero biases in linear layers and 2-D convolutions.

    The gain is 0.01 for the policy head and 1 for the value head. Elsewhere it is the layer's
    attribute `initial_gain`, or sqrt(2) without this attribute. Layers of other types keep their
    initial parameters.
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
