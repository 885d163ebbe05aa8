"""The determinism contract with running statistics of observations and rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.config.sections import TrainConfig
from tests import harness, sections
from tests.harness import NUM_ENVS, STEPS_PER_ROLLOUT


def normalizing_config(
    algo: str, precision: str, runner: str, normalize_reward: bool = True
) -> TrainConfig:
    config = harness.small_config("gaussian", algo, precision, runner=runner)
    env = sections.gym(
        "Pendulum-v1",
        max_episode_steps=20,
        normalize_obs=True,
        normalize_reward=normalize_reward,
    )
    keep = sections.checkpoint(interval=STEPS_PER_ROLLOUT, keep=100)
    return replace(config, env=env, checkpoint=keep)


def moments(file: Path) -> tuple[float, np.ndarray, float]:
    """Returns the numbers of counted observations and their mean, and the deviation of returns."""
    arrays = load_checkpoint(file).arrays
    of = {name: arrays[f"learner/params/0.{name}"] for name in NAMES}
    return float(of[NAMES[0]]), of[NAMES[1]], float(of[NAMES[2]])


NAMES = ("obs_normalizer.count", "obs_normalizer.mean", "reward_normalizer.deviations")


@pytest.mark.parametrize(
    ("algo", "precision"),
    [
        ("vtrace", "fp32"),
        *(
            pytest.param(algo, precision, marks=pytest.mark.slow)
            for algo, precision in (("a2c", "fp32"), ("a2c", "bf16"), ("ppo", "bf16"))
        ),
    ],
)
def test_workers_runners_and_resumes_change_nothing(
    algo: str, precision: str, tmp_path: Path
) -> None:
    config = normalizing_config(algo, precision, "serial")
    expected = harness.run(config, tmp_path / "serial")
    files = sorted((tmp_path / "serial" / "checkpoints").glob("*.ckpt"))
    seen: list[np.ndarray] = []
    for rollout, slot in enumerate(harness.slots(tmp_path / "serial"), start=1):
        # The slot of a checkpoint has not been learned from.
        count, mean, deviation = moments(files[rollout])
        assert count == (rollout - 1) * STEPS_PER_ROLLOUT
        if seen:
            np.testing.assert_allclose(mean, np.concatenate(seen).mean((0, 1)), rtol=1e-9)
            assert deviation > 0
        seen.append(slot["obs"][:-1].astype(np.float64))

    config = normalizing_config(algo, precision, "hts")
    by_others = harness.with_workers(config, 3, 2, 2)
    assert harness.run(by_others, tmp_path / "hts") == expected
    others = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))
    for file, other in zip(files, others, strict=True):
        one, two = load_checkpoint(file).arrays, load_checkpoint(other).arrays
        for name in (n for n in one if n.startswith("learner/")):
            assert one[name].tobytes() == two[name].tobytes(), (file.name, name)
    by_more = harness.with_workers(config, 5, 1, 1)
    assert harness.run(by_more, tmp_path / "hts", others[13]) == expected


def test_sync_counts_the_rollout_that_it_learns_from(tmp_path: Path) -> None:
    config = normalizing_config("ppo", "fp32", "sync")
    config = replace(config, total_steps=3 * STEPS_PER_ROLLOUT)
    harness.run(config, tmp_path / "sync")
    files = sorted((tmp_path / "sync" / "checkpoints").glob("*.ckpt"))
    assert [moments(file)[0] for file in files] == [i * STEPS_PER_ROLLOUT for i in range(4)]
    returns = load_checkpoint(files[-1]).arrays["learner/discounted_returns"]
    assert returns.shape == (NUM_ENVS,)
    assert returns.dtype == np.float64


def test_an_asynchronous_run_normalizes_observations(tmp_path: Path) -> None:
    config = normalizing_config("impala", "fp32", "async", normalize_reward=False)
    config = replace(config, total_steps=6 * STEPS_PER_ROLLOUT)
    harness.run(harness.with_workers(config, 2, 1, 1), tmp_path / "async")
    last = sorted((tmp_path / "async" / "checkpoints").glob("*.ckpt"))[-1]
    count = load_checkpoint(last).arrays["learner/params/0.obs_normalizer.count"]
    assert count == 6 * STEPS_PER_ROLLOUT
