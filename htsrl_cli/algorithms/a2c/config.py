"""`algo=a2c`: the keys of advantage actor-critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.algorithms.rmsprop import RmspropConfig
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class A2cConfig(RmspropConfig):
    """Advantage actor-critic (Mnih et al., 2016), with one step of RMSprop for each rollout.

    Returns are bootstrapped at the end of the rollout. The gradient is computed at the parameters
    of the behavior policy. With the runners `hts` and `serial`, this is HTS-RL's one-step delayed
    gradient.
    """

    needs_one_version: ClassVar[bool] = True


KIND = Kind(A2cConfig, "htsrl_cli.algorithms.a2c.algorithm:A2c")
