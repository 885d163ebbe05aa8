"""A gated layer: tanh units with sigmoid gates (van den Oord et al., 2016)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_example.gated.config import GatedConfig


class Gated(nn.Module):
    """A gated layer that maps observations [N, *obs_shape] to features [N, width], for N rows."""

    def __init__(self, config: GatedConfig, spec: EnvSpec) -> None:
        super().__init__()
        size = math.prod(spec.obs_shape)
        self.value = nn.Linear(size, config.width)
        self.gate = nn.Linear(size, config.width)
        self.num_features = config.width

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.flatten(1).to(self.value.weight.dtype)
        return torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))
