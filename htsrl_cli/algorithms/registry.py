"""Makes algorithms of any kind.

A kind lies in a folder of its own: its keys (a subclass of `AlgoConfig`), its loss and the
algorithm. It is declared by an entry point of the group `htsrl.algorithms`, which names a `Kind`
whose factory is called as `factory(config)` and returns an `Algorithm`.
"""

from __future__ import annotations

from htsrl_cli.algorithms.base import Algorithm
from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.plain import find_kind


def build_algorithm(config: AlgoConfig) -> Algorithm:
    """Returns the algorithm that a configuration describes."""
    algorithm: Algorithm = find_kind("algo", config.name).load()(config)
    return algorithm
