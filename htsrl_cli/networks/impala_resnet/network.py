"""The deep residual network of Espeholt et al. (2018, "IMPALA", figure 3), without its LSTM.

In shapes, N is the number of rows, C the number of channels, H the height and W the width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.impala_resnet.config import ImpalaResnetConfig

# Channels of the three sections.
_CHANNELS = (16, 32, 32)
_NUM_FEATURES = 256


class ImpalaResnet(nn.Module):
    """Three sections and a linear layer with ReLUs, from [N, H, W, C] to float [N, 256].

    Each section halves height and width, rounded up, so images may have any size.

    Args:
        spec: the form of observations, whose shape is [H, W, C].

    Attributes:
        num_features: number of features, 256.
    """

    num_features = _NUM_FEATURES

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        height, width, channels = spec.obs_shape
        self._scale = spec.obs_scale
        self.sections = nn.ModuleList()
        for outputs in _CHANNELS:
            self.sections.append(_Section(channels, outputs))
            height, width, channels = -(-height // 2), -(-width // 2), outputs
        self.fc = nn.Linear(height * width * channels, _NUM_FEATURES)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.permute(0, 3, 1, 2)
        x = x.to(self.fc.weight.dtype, memory_format=torch.channels_last)
        # As in `NatureCnn`, the first weights are scaled, not the pixels.
        scale = self._scale
        for section in self.sections:
            x, scale = section(x, scale), 1.0
        return F.relu_(self.fc(F.relu_(x).permute(0, 2, 3, 1).flatten(1)))


class _Section(nn.Module):
    """A convolution, a max-pooling of 3x3 pixels with stride 2, and two residual blocks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(outputs) for _ in range(2))

    def forward(self, x: Tensor, scale: float) -> Tensor:
        """Maps [N, C, H, W], multiplied by `scale`, to [N, outputs, H / 2, W / 2]."""
        x = F.conv2d(x, self.conv.weight * scale, self.conv.bias, padding=1)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return x


class _Block(nn.Module):
    """A residual block: the input plus the output of two convolutions, each after a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _BlockConv(channels)
        self.conv2 = _BlockConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.conv2(F.relu_(self.conv1(F.relu(x))))
        return x + added


class _BlockConv(nn.Conv2d):
    """A convolution of a residual block.

    Attributes:
        initial_gain: see `initialize`. With the usual gain, sqrt(2), each block would double the
            variance, and the first values and logits would be several times too large.
    """

    initial_gain = 1.0

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)


def make_impala_resnet(config: ImpalaResnetConfig, spec: EnvSpec) -> ImpalaResnet:
    """Builds the trunk that policy and value share."""
    return ImpalaResnet(spec)
