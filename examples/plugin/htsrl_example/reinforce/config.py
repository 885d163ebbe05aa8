"""The keys of `algo=reinforce`."""

from __future__ import annotations

from dataclasses import dataclass

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class ReinforceConfig(AlgoConfig):
    """REINFORCE (Williams, 1992) with a learned baseline: one step of Adam per rollout."""


KIND = Kind(ReinforceConfig, "htsrl_example.reinforce.algorithm:Reinforce")
