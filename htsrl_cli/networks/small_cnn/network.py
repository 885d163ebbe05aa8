"""The convolutional network of Young and Tian (2019, "MinAtar"), for small images.

In shapes, N is the number of rows, C the number of channels, H the height and W the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.activations import Layer, relu_layer
from htsrl_cli.networks.small_cnn.config import KERNEL, SmallCnnConfig

_NUM_FILTERS = 16
_NUM_FEATURES = 128


class SmallCnn(nn.Module):
    """One convolution and one linear layer with ReLUs, from [N, H, W, C] to float [N, 128].

    Args:
        spec: the form of observations, whose shape is [H, W, C].

    Attributes:
        computes_by_layer: see `ActorCritic`.
        num_features: number of features, 128.
    """

    computes_by_layer = True
    num_features = _NUM_FEATURES

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        height, width, channels = spec.obs_shape
        self._scale = spec.obs_scale
        self.conv = nn.Conv2d(channels, _NUM_FILTERS, KERNEL)
        outputs = _NUM_FILTERS * (height - KERNEL + 1) * (width - KERNEL + 1)
        self.fc = nn.Linear(outputs, _NUM_FEATURES)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> Tensor:
        x = obs.permute(0, 3, 1, 2)
        x = x.to(self.conv.weight.dtype, memory_format=torch.channels_last)
        # As in `NatureCnn`, the weights are scaled, not the pixels.
        x = layer(x, self.conv.weight * self._scale, self.conv.bias)
        return layer(x.permute(0, 2, 3, 1).flatten(1), self.fc.weight, self.fc.bias)


def make_small_cnn(config: SmallCnnConfig, spec: EnvSpec) -> SmallCnn:
    """Builds the trunk that policy and value share."""
    return SmallCnn(spec)
