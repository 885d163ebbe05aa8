"""`network=mlp`: multilayer perceptrons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.config.rules import SIZES, Rules
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class MlpConfig(NetworkConfig):
    """Two separate multilayer perceptrons with tanh, one for the policy and one for the value.

    Attributes:
        hidden_sizes: number of units of each hidden layer, in order.
    """

    rules: ClassVar[Rules] = {"hidden_sizes": SIZES, **NetworkConfig.rules}

    hidden_sizes: tuple[int, ...]


KIND = Kind(MlpConfig, "htsrl_cli.networks.mlp.network:make_mlps")
