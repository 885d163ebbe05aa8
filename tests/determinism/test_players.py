"""The determinism contract with several players, in environments whose env steps are free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from htsrl_cli.config.sections import TrainConfig
from tests import harness, sections
from tests.harness import STEPS_PER_ROLLOUT

PLAYERS = 3
TEAM = sections.synthetic("sleep", episode_length=7, truncate=True, num_players=PLAYERS)
GRID = [
    (policies, algo, precision)
    for policies in ("shared", "independent")
    for algo in harness.ALGOS
    for precision in ("fp32", "bf16")
]
FAST = {("independent", "a2c", "bf16")}
COMBINATIONS = [
    pytest.param(*each, marks=() if each in FAST else pytest.mark.slow, id="-".join(each))
    for each in GRID
]


def team_config(policies: str, algo: str, precision: str, runner: str = "hts") -> TrainConfig:
    config = harness.small_config("truncating", algo, precision, runner=runner)
    return replace(
        config,
        env=TEAM,
        algo=replace(config.algo, policies=policies),
        checkpoint=sections.checkpoint(interval=STEPS_PER_ROLLOUT, keep=100),
    )


@pytest.mark.parametrize(("policies", "algo", "precision"), COMBINATIONS)
def test_workers_runners_and_resumes_change_nothing(
    policies: str, algo: str, precision: str, tmp_path: Path
) -> None:
    config = team_config(policies, algo, precision, "serial")
    expected = harness.run(config, tmp_path / "serial")
    assert len(expected.metrics) == harness.NUM_ROLLOUTS // 2
    slots = harness.slots(tmp_path / "serial")
    # An episode ends for all players; a game counts once, in its first player's column.
    truncated = np.stack([slot["truncated"] for slot in slots])
    games = np.stack([slot["episode_lengths"] > 0 for slot in slots])
    assert truncated[..., ::PLAYERS].sum() > 100
    assert np.array_equal(truncated, np.repeat(games[..., ::PLAYERS], PLAYERS, axis=-1))

    config = team_config(policies, algo, precision)
    by_others = harness.with_workers(config, 3, 2, 2)
    assert harness.run(by_others, tmp_path / "hts") == expected
    files = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))
    by_more = harness.with_workers(config, 5, 1, 1)
    assert harness.run(by_more, tmp_path / "hts", files[13]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("policies", ["shared", "independent"])
def test_sync_repeats_itself(policies: str, tmp_path: Path) -> None:
    config = team_config(policies, "ppo", "fp32", "sync")
    first = harness.run(harness.with_workers(config, 4, 1, 2), tmp_path / "first")
    assert harness.run(harness.with_workers(config, 1, 1, 1), tmp_path / "second") == first


@pytest.mark.slow
@pytest.mark.parametrize("policies", ["shared", "independent"])
def test_actors_in_threads_change_nothing(policies: str, tmp_path: Path) -> None:
    config = team_config(policies, "ppo", "bf16")
    threads = replace(config, actors=replace(config.actors, host="thread", num_actors=2))
    expected = harness.run(config, tmp_path / "processes")
    assert harness.run(threads, tmp_path / "threads") == expected


def test_shared_and_independent_policies_differ(tmp_path: Path) -> None:
    """Compares shared with independent policies, which start with different parameters."""
    found = {}
    for policies in ("shared", "independent"):
        config = replace(team_config(policies, "a2c", "fp32", "serial"), total_steps=1024)
        found[policies] = harness.run(config, tmp_path / policies)
    assert found["shared"].rollouts != found["independent"].rollouts
