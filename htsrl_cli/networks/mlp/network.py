"""Multilayer perceptrons for vectors and small images.

In shapes, N is the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.mlp.config import MlpConfig


class Mlp(nn.Module):
    """Linear layers from observations [N, *obs_shape] to features [N, num_features].

    Args:
        spec: the form of observations.
        hidden_sizes, activation: see `MlpConfig`.

    Attributes:
        num_features: number of features, the last entry of `hidden_sizes`.
    """

    def __init__(self, spec: EnvSpec, hidden_sizes: tuple[int, ...], activation: str) -> None:
        super().__init__()
        sizes = (math.prod(spec.obs_shape), *hidden_sizes)
        self.scale = spec.obs_scale
        self._activation: Callable[[Tensor], Tensor] = getattr(F, activation)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.num_features = hidden_sizes[-1]

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.flatten(1).to(next(self.parameters()).dtype) * self.scale
        for layer in self.layers:
            x = self._activation(layer(x))
        return x


def make_mlps(config: MlpConfig, spec: EnvSpec) -> Mlp | tuple[Mlp, Mlp]:
    """Builds a trunk for the policy and one for the value, or one trunk for both."""
    build = partial(Mlp, spec, config.hidden_sizes, config.activation)
    return (build(), build()) if config.separate_value else build()
