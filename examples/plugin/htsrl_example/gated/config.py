"""The keys of `network=gated`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.config.rules import COUNT, Rules
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class GatedConfig(NetworkConfig):
    """A layer of gated units, shared by policy and value; a linear layer computes the gates.

    Attributes:
        width: number of units in the layer.
    """

    rules: ClassVar[Rules] = {"width": COUNT, **NetworkConfig.rules}

    width: int


KIND = Kind(GatedConfig, "htsrl_example.gated.network:Gated")
