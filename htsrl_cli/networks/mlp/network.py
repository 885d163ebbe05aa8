"""Multilayer perceptrons for vectors and small images.

In shapes, N is the number of rows.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.mlp.config import MlpConfig


class Mlp(nn.Module):
    """Linear layers with tanh, from observations [N, *obs_shape] to features [N, num_features].

    Attributes:
        num_features: number of features, the last entry of `hidden_sizes`.
    """

    def __init__(self, spec: EnvSpec, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (math.prod(spec.obs_shape), *hidden_sizes)
        self.scale = spec.obs_scale
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.num_features = hidden_sizes[-1]

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.flatten(1).to(next(self.parameters()).dtype) * self.scale
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def make_mlps(config: MlpConfig, spec: EnvSpec) -> tuple[Mlp, Mlp]:
    """Builds separate trunks for policy and value, as is usual for vector observations."""
    return Mlp(spec, config.hidden_sizes), Mlp(spec, config.hidden_sizes)
