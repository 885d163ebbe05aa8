"""The registry of algorithms.

Each kind has a folder: its keys (a subclass of `AlgoConfig`), its loss and the algorithm. An entry
point of the group `htsrl.algorithms` names its `Kind`, whose factory is called as `factory(config)`
and returns an `Algorithm`.
"""

from __future__ import annotations

from htsrl_cli.algorithms.base import Algorithm
from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.plain import find_kind


def build_algorithm(config: AlgoConfig) -> Algorithm:
    """Builds the algorithm of a configuration."""
    algorithm: Algorithm = find_kind("algo", config.name).load()(config)
    return algorithm
