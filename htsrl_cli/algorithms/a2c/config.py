"""`algo=a2c`: the keys of advantage actor-critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.rules import BELOW_ONE, POSITIVE, Rules
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class A2cConfig(AlgoConfig):
    """Advantage actor-critic (Mnih et al., 2016), with one step of RMSprop for each rollout.

    Returns are bootstrapped at the end of the rollout. The gradient is computed at the parameters
    of the behavior policy. With the runners `hts` and `serial`, this is HTS-RL's one-step delayed
    gradient.

    Attributes:
        rmsprop_alpha: RMSprop's smoothing constant (`alpha` in PyTorch).
        rmsprop_eps: RMSprop's epsilon.
    """

    rules: ClassVar[Rules] = {
        "rmsprop_alpha": BELOW_ONE,
        "rmsprop_eps": POSITIVE,
        **AlgoConfig.rules,
    }

    rmsprop_alpha: float
    rmsprop_eps: float


KIND = Kind(A2cConfig, "htsrl_cli.algorithms.a2c.algorithm:A2c")
