"""Keys of algorithms that make one step of RMSprop for each rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.rules import BELOW_ONE, POSITIVE, Rules


@dataclass(frozen=True)
class RmspropConfig(AlgoConfig):
    """Section `algo` of an algorithm that uses RMSprop.

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
