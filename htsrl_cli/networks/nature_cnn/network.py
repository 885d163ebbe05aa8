"""The convolutional network of Mnih et al. (2015).

In shapes, N is the number of rows, C the number of channels, H the height and W the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.activations import Layer, relu_layer
from htsrl_cli.networks.nature_cnn.config import NatureCnnConfig


class NatureCnn(nn.Module):
    """The convolutional trunk of Mnih et al. (2015), from [N, H, W, C] to float [N, 512].

    Images in the slot are [H, W, C]. Viewed as [C, H, W], they already have the channels-last
    memory layout, so they need not be transposed in memory.

    Args:
        spec: the form of observations, whose shape is [H, W, C].
        linear_kernel: see `NatureCnnConfig`.

    Attributes:
        computes_by_layer: see `ActorCritic`.
        num_features: number of features, 512.
    """

    computes_by_layer = True

    def __init__(self, spec: EnvSpec, linear_kernel: str) -> None:
        super().__init__()
        height, width, channels = spec.obs_shape
        self._scale = spec.obs_scale
        self._is_convolution = linear_kernel == "convolution"
        self.conv1 = nn.Conv2d(channels, 32, 8, stride=4)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3, stride=1)
        # Height and width of conv2's output. Pixels on which this output does not depend are cut
        # off. The inputs of conv1 and conv2 then have widths that are multiples of the stride, as
        # `join_columns` requires.
        rows, columns = (((size - 8) // 4 + 1 - 4) // 2 + 1 for size in (height, width))
        self.seen = slice(8 * rows + 12), slice(8 * columns + 12)
        self.fc = nn.Linear(64 * (rows - 2) * (columns - 2), 512)
        self.num_features = 512
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> Tensor:
        x = obs[:, *self.seen].permute(0, 3, 1, 2)
        x = x.to(self.conv1.weight.dtype, memory_format=torch.channels_last)
        # The weights are scaled, not the pixels. This saves a pass over the images, and bf16
        # represents the integers 0 to 255 exactly, but not these integers divided by 255.
        x = _convolve(layer, x, self.conv1.weight * self._scale, self.conv1.bias, stride=4)
        x = _convolve(layer, x, self.conv2.weight, self.conv2.bias, stride=2)
        x = layer(x, self.conv3.weight, self.conv3.bias)
        if self._is_convolution and x.device.type == "cpu" and x.dtype == torch.float32:
            # An equivalent convolution, whose kernels are as large as its input images.
            weight = self.fc.weight.view(-1, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
            return layer(x, weight, self.fc.bias).flatten(1)
        # Channels-last memory is flattened in (H, W, C) order without a copy.
        return layer(x.permute(0, 2, 3, 1).flatten(1), self.fc.weight, self.fc.bias)


def make_nature_cnn(config: NatureCnnConfig, spec: EnvSpec) -> NatureCnn:
    """Builds the trunk that policy and value share."""
    return NatureCnn(spec, config.linear_kernel)


def _convolve(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolves channels-last images, after joining pixel columns to make the convolution faster.

    In the images and in the kernels, each group of `stride` adjacent pixel columns is viewed as one
    pixel column with `stride` times as many channels. The convolution multiplies the same numbers
    as before, and no memory is copied. Its stride along the width is then 1, and the larger number
    of channels fills vector registers better.
    """
    return layer(join_columns(x, stride), join_columns(weight, stride), bias, (stride, 1))


def join_columns(x: Tensor, number: int) -> Tensor:
    """Joins each group of `number` adjacent pixel columns of channels-last images into one.

    The result is a view. The shape [N, C, H, W] becomes [N, number * C, H, W / number].
    """
    n, channels, height, width = x.shape
    joined = x.permute(0, 2, 3, 1).reshape(n, height, width // number, number * channels)
    return joined.permute(0, 3, 1, 2)
