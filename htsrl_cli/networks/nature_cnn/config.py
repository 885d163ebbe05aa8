"""`network=nature_cnn`: the convolutional network of Mnih et al. (2015)."""

from __future__ import annotations

from dataclasses import dataclass

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind

# Smaller images do not survive the three strides.
MIN_SIZE = 36


@dataclass(frozen=True)
class NatureCnnConfig(NetworkConfig):
    """Three convolutions and a layer of 512, shared by policy and value."""

    def check(self, obs_shape: tuple[int, ...]) -> None:
        """Observations are images that are large enough.

        Raises:
            ConfigError: they are not.
        """
        if not is_large_image(obs_shape):
            remedy = (
                f"needs images of {MIN_SIZE} x {MIN_SIZE} or more, and observations here are "
                f"{list(obs_shape)}: choose auto or mlp"
            )
            raise ConfigError("network.name", self.name, remedy)


def is_large_image(obs_shape: tuple[int, ...]) -> bool:
    """Returns True for images [H, W, C] that the convolutions leave something of."""
    return len(obs_shape) == 3 and min(obs_shape[:2]) >= MIN_SIZE


KIND = Kind(NatureCnnConfig, "htsrl_cli.networks.nature_cnn.network:make_nature_cnn")
