"""`network=mlp`: multilayer perceptrons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.config.rules import ACTIVATION, SIZES, Rules
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class MlpConfig(NetworkConfig):
    """Multilayer perceptrons, one for the policy and one for the value, or one for both.

    Attributes:
        hidden_sizes: number of units of each hidden layer, in order.
        activation: function that follows each layer, by its name in `torch.nn.functional`.
        separate_value: the value has a perceptron of its own; false computes policy and value from
            the same features.
    """

    rules: ClassVar[Rules] = {
        "hidden_sizes": SIZES,
        "activation": ACTIVATION,
        **NetworkConfig.rules,
    }

    hidden_sizes: tuple[int, ...]
    activation: str
    separate_value: bool


KIND = Kind(MlpConfig, "htsrl_cli.networks.mlp.network:make_mlps")
