"""`network=small_cnn`: the convolutional network of Young and Tian (2019) for MinAtar."""

from __future__ import annotations

from dataclasses import dataclass

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind

# Height and width of the kernels.
KERNEL = 3


@dataclass(frozen=True)
class SmallCnnConfig(NetworkConfig):
    """A 3x3 convolution with 16 outputs and a linear layer of 128, shared by policy and value."""

    def check(self, obs_shape: tuple[int, ...]) -> None:
        """Checks that observations are images of at least `KERNEL` x `KERNEL` pixels.

        Raises:
            ConfigError: observations are smaller images, or are not images.
        """
        if len(obs_shape) != 3 or min(obs_shape[:2]) < KERNEL:
            remedy = (
                f"needs images of at least {KERNEL} x {KERNEL} pixels, but observations here have "
                f"shape {list(obs_shape)}: use network=auto or network=mlp"
            )
            raise ConfigError("network.name", self.name, remedy)


KIND = Kind(SmallCnnConfig, "htsrl_cli.networks.small_cnn.network:make_small_cnn")
