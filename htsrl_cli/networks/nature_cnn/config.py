"""`network=nature_cnn`: the convolutional network of Mnih et al. (2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.config.rules import LINEAR_KERNEL, Rules
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind

# The third convolution would have no output for smaller images.
MIN_SIZE = 36


@dataclass(frozen=True)
class NatureCnnConfig(NetworkConfig):
    """Three convolutions and a linear layer of 512 outputs, shared by policy and value.

    Attributes:
        linear_kernel: how a CPU computes the linear layer in fp32: as a matrix `product` (MKL) or
            as a `convolution` (oneDNN). The two kernels round differently. The processor determines
            which kernel is faster; `auto` chooses by the processor.
    """

    rules: ClassVar[Rules] = {"linear_kernel": LINEAR_KERNEL, **NetworkConfig.rules}

    linear_kernel: str

    def check(self, obs_shape: tuple[int, ...]) -> None:
        """Checks that observations are images of at least `MIN_SIZE` x `MIN_SIZE` pixels.

        Raises:
            ConfigError: observations are smaller images, or are not images.
        """
        if not is_large_image(obs_shape):
            remedy = (
                f"needs images of at least {MIN_SIZE} x {MIN_SIZE} pixels, but observations here "
                f"have shape {list(obs_shape)}: use network=auto or network=mlp"
            )
            raise ConfigError("network.name", self.name, remedy)


def is_large_image(obs_shape: tuple[int, ...]) -> bool:
    """Returns True if `obs_shape` is [H, W, C] and H and W are at least `MIN_SIZE`."""
    return len(obs_shape) == 3 and min(obs_shape[:2]) >= MIN_SIZE


KIND = Kind(NatureCnnConfig, "htsrl_cli.networks.nature_cnn.network:make_nature_cnn")
