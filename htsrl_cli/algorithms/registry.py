"""The registry of algorithms.

Each algorithm has a folder with its keys (a subclass of `AlgoConfig`), its loss and its class. An
entry point in the group `htsrl.algorithms` refers to the algorithm's `Kind`, which names its keys
and its factory. The factory is called as `factory(config)` and returns an `Algorithm`.
"""

from __future__ import annotations

from htsrl_cli.algorithms.base import Algorithm
from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.plain import find_kind


def build_algorithm(config: AlgoConfig) -> Algorithm:
    """Builds the algorithm that the section `algo` describes."""
    algorithm: Algorithm = find_kind("algo", config.name).load()(config)
    return algorithm
