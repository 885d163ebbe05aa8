"""`network=auto`: the keys of the network that suits the observations."""

from __future__ import annotations

from dataclasses import dataclass

from htsrl_cli.networks.mlp.config import MlpConfig
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class AutoConfig(MlpConfig):
    """`nature_cnn` for images of 36 x 36 or more, else `mlp`, which alone uses `hidden_sizes`."""


KIND = Kind(AutoConfig, "htsrl_cli.networks.auto.network:make_auto")
