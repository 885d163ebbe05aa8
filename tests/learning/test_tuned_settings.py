"""Tests of the scores that the settings for an environment reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Htsrl


@pytest.mark.slow(reason="trains for minutes")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("env_id", "total_steps", "score"),
    [
        ("CartPole-v1", 60_000, 195),
        ("Pendulum-v1", 200_000, -400),
        ("LunarLander-v3", 500_000, 150),
    ],
)
def test_greedy_score(
    env_id: str, total_steps: int, score: float, seed: int, htsrl: Htsrl, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = ("env=gym", f"env.id={env_id}", "algo=ppo", f"total_steps={total_steps}")
    trained = htsrl("train", *words, f"seed={seed}", f"hydra.run.dir={run_dir}")
    assert trained.returncode == 0, trained.stderr
    played = htsrl("eval", f"checkpoint={run_dir}", "greedy=true", "episodes=30")
    assert played.returncode == 0, played.stderr
    mean = json.loads((run_dir / "eval.json").read_text())["scores"]["greedy"]["mean"]
    print(f"{env_id}, seed {seed}: {mean:.1f} after {total_steps:,} env steps")
    assert mean >= score
