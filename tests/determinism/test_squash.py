"""The determinism contract with actions that tanh squashes, and what a slot then holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from htsrl_cli.config.sections import TrainConfig
from tests import harness, sections
from tests.harness import STEPS_PER_ROLLOUT
from tests.unit.bounded_env import CLIPPED


def squashed_config(algo: str, runner: str) -> TrainConfig:
    config = harness.small_config("gaussian", algo, runner=runner)
    return replace(
        config,
        env=sections.gym("tests.unit.bounded_env:Bounded-v0"),
        algo=replace(config.algo, squash="tanh", entropy_coef=0.01),
        checkpoint=sections.checkpoint(interval=STEPS_PER_ROLLOUT, keep=100),
    )


@pytest.mark.parametrize(
    "algo",
    ["vtrace", *(pytest.param(a, marks=pytest.mark.slow) for a in ("ppo", "a2c", "impala"))],
)
def test_workers_runners_and_resumes_change_nothing(algo: str, tmp_path: Path) -> None:
    expected = harness.run(squashed_config(algo, "serial"), tmp_path / "serial")
    slots = harness.slots(tmp_path / "serial")
    assert all((slot["rewards"] > CLIPPED).all() for slot in slots)
    # Stored actions have no bounds.
    assert max(np.abs(slot["actions"]).max() for slot in slots) > 2.0
    config = squashed_config(algo, "hts")
    by_others = harness.with_workers(config, 3, 2, 2)
    assert harness.run(by_others, tmp_path / "hts") == expected
    files = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))
    by_more = harness.with_workers(config, 5, 1, 1)
    assert harness.run(by_more, tmp_path / "hts", files[13]) == expected


def test_without_lag_the_ratio_starts_at_one(tmp_path: Path) -> None:
    config = squashed_config("ppo", "sync")
    config = replace(
        config,
        algo=replace(harness.PPO, squash="tanh", update_epochs=1, num_minibatches=1),
        total_steps=4 * STEPS_PER_ROLLOUT,
    )
    found = harness.run(config, tmp_path / "sync")
    assert all(abs(line["loss/kl"]) < 1e-6 for line in found.metrics)


def test_an_asynchronous_run_squashes_too(tmp_path: Path) -> None:
    config = squashed_config("impala", "async")
    # Later the policy may learn actions that round to the bounds.
    small = replace(config, total_steps=4 * STEPS_PER_ROLLOUT, checkpoint=sections.checkpoint())
    found = harness.run(harness.with_workers(small, 2, 1, 1), tmp_path / "async")
    returns = [line["episode/return_mean_100"] for line in found.metrics]
    assert returns
    assert min(returns) > CLIPPED / 100


def test_the_environment_of_these_tests_notices_clipping(tmp_path: Path) -> None:
    config = squashed_config("ppo", "serial")
    small = replace(config, total_steps=2 * STEPS_PER_ROLLOUT)
    harness.run(replace(small, algo=replace(small.algo, squash="clip")), tmp_path / "clip")
    (slot,) = harness.slots(tmp_path / "clip")[:1]
    assert (slot["rewards"] == CLIPPED).any()
