"""Learners that the tests of updates build and compare."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import torch

from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.device import set_up_torch
from tests import sections
from tests.unit.learner_references import (
    NETWORK,
    PPO,
    SEED,
    SPEC,
)
from tests.unit.recurrent_references import Theta

TOLERANCE = 2e-6
# An algorithm that learns from the slot's own log-probabilities and values.
SLOT_PPO = replace(PPO, correction="none")


def make_learner(
    algo: AlgoConfig,
    *,
    spec: EnvSpec = SPEC,
    num_updates: int = 10,
    lag: int | None = 1,
    micro_batch: int = 12,
    num_threads: int = 1,
    precision: str = "fp32",
    num_shards: int = 1,
    network: NetworkConfig = NETWORK,
    inference_batch: int = 4,
) -> Learner:
    """Builds a learner, with torch set up as in a run."""
    set_up_torch()
    config = sections.learner(
        device="cpu",
        precision=precision,
        num_threads=num_threads,
        micro_batch=micro_batch,
        num_shards=num_shards,
    )
    return Learner(
        spec,
        network,
        algo,
        config,
        torch.device("cpu"),
        num_updates,
        lag,
        SEED,
        inference_batch=inference_batch,
    )


def no_check() -> None:
    """Stands in for the watcher's check; nothing ever fails."""


def theta_of(learner: Learner) -> Theta:
    """Returns the parameters of a learner's only policy."""
    arrays = learner.parameters().items()
    return {n.removeprefix("0."): torch.tensor(a, dtype=torch.float64) for n, a in arrays}


def digests(learner: Learner) -> dict[str, str]:
    """Returns the hash of every array of a learner's state, by name."""
    return {n: sha256(a.tobytes()).hexdigest() for n, a in learner.state().arrays.items()}


def differ(theta: Theta, other: Theta, atol: float = TOLERANCE) -> bool:
    return any(float((p - other[name]).abs().max()) > atol for name, p in theta.items())


def assert_same_state(one: Learner, other: Learner) -> None:
    """Asserts that θ[j], θ[j-1] and the optimizer are equal, bit for bit."""
    expected, got = one.state(), other.state()
    assert expected.values == got.values
    assert expected.arrays.keys() == got.arrays.keys()
    for name, array in expected.arrays.items():
        assert array.tobytes() == got.arrays[name].tobytes(), name
