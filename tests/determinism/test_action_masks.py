"""The determinism contract with action masks, in an environment that refuses masked actions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from htsrl_cli.config.sections import TrainConfig
from tests import harness, sections
from tests.harness import STEPS_PER_ROLLOUT

SIZES = (4, 3)


def masked_config(name: str, algo: str, in_obs: bool, runner: str) -> TrainConfig:
    config = harness.small_config("gaussian", algo, runner=runner)
    kwargs = {"in_obs": in_obs, "sizes": SIZES}
    return replace(
        config,
        env=sections.gym(f"tests.unit.masked_env:{name}-v0", kwargs=kwargs, mask_actions=True),
        checkpoint=sections.checkpoint(interval=STEPS_PER_ROLLOUT, keep=100),
    )


@pytest.mark.parametrize(
    ("name", "algo", "in_obs"),
    [
        ("Masked", "vtrace", False),
        pytest.param("MaskedSaving", "a2c", True, marks=pytest.mark.slow),
        pytest.param("MaskedSaving", "ppo", False, marks=pytest.mark.slow),
        pytest.param("Masked", "impala", True, marks=pytest.mark.slow),
    ],
)
def test_workers_runners_and_resumes_change_nothing(
    name: str, algo: str, in_obs: bool, tmp_path: Path
) -> None:
    config = masked_config(name, algo, in_obs, "serial")
    expected = harness.run(config, tmp_path / "serial")
    first = np.cumsum([0, *SIZES[:-1]])
    slots = harness.slots(tmp_path / "serial")
    for slot in slots:
        masks, taken = slot["masks"], slot["actions"] + first
        assert np.take_along_axis(masks[:-1], taken, axis=-1).all()
        assert 0.4 < masks.mean() < 0.8
    # Row 0 of a slot is the last row of the slot before.
    for before, after in pairwise(slots):
        assert np.array_equal(before["masks"][-1], after["masks"][0])
    config = masked_config(name, algo, in_obs, "hts")
    by_others = harness.with_workers(config, 3, 2, 2)
    assert harness.run(by_others, tmp_path / "hts") == expected
    files = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))
    by_more = harness.with_workers(config, 5, 1, 1)
    assert harness.run(by_more, tmp_path / "hts", files[13]) == expected


def test_the_policy_at_the_start_of_an_update_is_the_same_without_lag(tmp_path: Path) -> None:
    # With runner=sync nothing is reevaluated, so that only equal masks give ratios of exactly 1.
    config = masked_config("Masked", "ppo", False, "sync")
    config = replace(config, algo=replace(harness.PPO, update_epochs=1, num_minibatches=1))
    small = replace(config, total_steps=4 * STEPS_PER_ROLLOUT)
    found = harness.run(small, tmp_path / "sync")
    assert all(abs(line["loss/kl"]) < 1e-6 for line in found.metrics)
    assert all(line["loss/clip_fraction"] == 0 for line in found.metrics)


def test_an_asynchronous_run_takes_allowed_actions(tmp_path: Path) -> None:
    config = masked_config("Masked", "impala", False, "async")
    small = replace(config, total_steps=8 * STEPS_PER_ROLLOUT, checkpoint=sections.checkpoint())
    harness.run(harness.with_workers(small, 2, 1, 1), tmp_path / "async")
