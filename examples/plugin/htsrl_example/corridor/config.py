"""The keys of `env=corridor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.rules import COUNT, Rule, Rules
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class CorridorConfig(EnvConfig):
    """A corridor with a door at its right end.

    Attributes:
        length: number of cells, including the cell with the door.
        time_limit: env steps after which an episode is truncated.
    """

    rules: ClassVar[Rules] = {
        "length": Rule(lambda value: value >= 2, "must be 2 or more"),
        "time_limit": COUNT,
        **EnvConfig.rules,
    }

    length: int
    time_limit: int


KIND = Kind(CorridorConfig, "htsrl_example.corridor.environment:make_corridor")
