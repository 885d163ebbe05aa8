"""`network=nature_cnn`: the convolutional network of Mnih et al. (2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.config.rules import LINEAR_KERNEL, Rules
from htsrl_cli.envs.base import LARGE_IMAGE, is_large_image
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind


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
        """Checks that observations are images of at least `LARGE_IMAGE` x `LARGE_IMAGE` pixels.

        Raises:
            ConfigError: observations are smaller images, or are not images.
        """
        if not is_large_image(obs_shape):
            remedy = (
                f"needs images of at least {LARGE_IMAGE} x {LARGE_IMAGE} pixels, but observations "
                f"here have shape {list(obs_shape)}: use network=auto or network=mlp"
            )
            raise ConfigError("network.name", self.name, remedy)


KIND = Kind(NatureCnnConfig, "htsrl_cli.networks.nature_cnn.network:make_nature_cnn")
