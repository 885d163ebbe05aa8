"""Networks as users would write them, chosen by `network.name=tests.unit.own_networks:NAME`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from htsrl_cli.config.kinds import OwnNetworkConfig
from htsrl_cli.envs.base import EnvSpec


class BufferedNet(nn.Module):
    """A network with one layer for vectors; one buffer scales its features, another one counts."""

    scale: Tensor
    count: Tensor

    def __init__(self, config: OwnNetworkConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.num_features = config.kwargs.get("width", 3)
        self.layer = nn.Linear(spec.obs_shape[0], self.num_features)
        self.register_buffer("scale", torch.linspace(1, 2, self.num_features))
        self.register_buffer("count", torch.tensor(2**40, dtype=torch.int64))

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.layer(obs.to(self.layer.weight.dtype)).tanh() * self.scale
        return features


class DrawingNet(nn.Module):
    """A network whose layers torch initializes from its global generator."""

    num_features = 4

    def __init__(self, config: OwnNetworkConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.cell = nn.GRUCell(spec.obs_shape[0], self.num_features)
        self.unused = nn.Embedding(5, 2)

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.cell(obs.to(self.cell.weight_ih.dtype))
        return features


def no_trunk(config: OwnNetworkConfig, spec: EnvSpec) -> nn.Module:
    """Returns a module without the required attribute `num_features`."""
    return nn.Identity()
