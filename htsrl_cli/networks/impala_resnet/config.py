"""`network=impala_resnet`: the deep residual network of Espeholt et al. (2018)."""

from __future__ import annotations

from dataclasses import dataclass

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class ImpalaResnetConfig(NetworkConfig):
    """15 convolutions with residual connections and a linear layer of 256, for policy and value."""

    def check(self, obs_shape: tuple[int, ...]) -> None:
        """Checks that observations are images, of any size.

        Raises:
            ConfigError: observations are not images.
        """
        if len(obs_shape) != 3:
            remedy = (
                f"needs images, but observations here have shape {list(obs_shape)}: use "
                "network=auto or network=mlp"
            )
            raise ConfigError("network.name", self.name, remedy)


KIND = Kind(ImpalaResnetConfig, "htsrl_cli.networks.impala_resnet.network:make_impala_resnet")
