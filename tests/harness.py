"""Helpers of several tests: small configurations, runs of them, and a run's fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from htsrl_cli.checkpoints.file import load_checkpoint
from htsrl_cli.config.checks import check_ranges
from htsrl_cli.config.kinds import AlgoConfig, EnvConfig
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.machine import has_bf16
from htsrl_cli.runners import run as runner
from tests import sections

# Reason for skipping football: `pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)`.
NO_FOOTBALL = "football's engine is not installed (make football)"

# A processor without bf16 emulates it, some fifteen times slower. There `make test` trains on
# images in fp32, and `make test-slow` uses bf16 with small images only.
# HTSRL_TEST_WITHOUT_BF16=1 selects the tests of such a processor.
HAS_BF16 = has_bf16() and not os.environ.get("HTSRL_TEST_WITHOUT_BF16")
IMAGE_PRECISION = "bf16" if HAS_BF16 else "fp32"
NEEDS_BF16 = pytest.mark.skipif(not HAS_BF16, reason="this processor would emulate bf16")

NUM_ENVS = 16
SYNC_INTERVAL = 16
NUM_ROLLOUTS = 24
STEPS_PER_ROLLOUT = NUM_ENVS * SYNC_INTERVAL

# A random policy loses a life within about forty env steps; the cap truncates half of the games.
SCREENS = sections.atari(game="breakout", max_num_frames_per_episode=720)
ENVS: dict[str, EnvConfig] = {
    # Small images take an eighth of the time of "screens", which have the default size.
    "atari": replace(SCREENS, screen_size=44, frame_stack=2),
    "screens": SCREENS,
    "terminating": sections.synthetic(name="sleep", episode_length=23),
    "truncating": sections.synthetic(name="sleep", episode_length=7, truncate=True),
    # Actions from a Gaussian distribution.
    "gaussian": sections.gym("Pendulum-v1", max_episode_steps=20),
}
IMAGES = ("atari", "screens")
# Minibatches have several micro-batches, so that several threads share the work.
PPO = sections.ppo(update_epochs=2, num_minibatches=4, learning_rate=1e-3, correction="proximal")
ALGOS: dict[str, AlgoConfig] = {
    "ppo": PPO,
    "a2c": sections.a2c(),
    # The limits of weights are so low that both limited and other weights occur.
    "decoupled": replace(PPO, correction="decoupled", max_weight=1.01),
    "vtrace": replace(PPO, correction="vtrace", max_weight=1.01, vtrace_rho=1.005, vtrace_c=1.0),
    "impala": sections.impala(
        learning_rate=2e-3, max_weight=1.01, vtrace_rho=1.005, max_grad_norm=200.0
    ),
}


def small_config(
    env: str,
    algo: str,
    precision: str = "fp32",
    linear_kernel: str = "product",
    runner: str = "hts",
) -> TrainConfig:
    """Returns the configuration of 24 rollouts of 16 environments; episodes end in every way."""
    config = sections.train(
        env=ENVS[env],
        algo=ALGOS[algo],
        network=sections.network(linear_kernel=linear_kernel),
        actors=sections.actors(num_envs=NUM_ENVS, precision=precision),
        learner=sections.learner(precision=precision, micro_batch=16),
        runner=sections.runner(name=runner, sync_interval=SYNC_INTERVAL),
        checkpoint=sections.checkpoint(interval=4 * STEPS_PER_ROLLOUT, keep=2),
        log=sections.log(interval=2 * STEPS_PER_ROLLOUT, tensorboard=False),
        seed=7,
        total_steps=NUM_ROLLOUTS * STEPS_PER_ROLLOUT,
    )
    # A value in the place of another key would otherwise go unnoticed.
    check_ranges(config)
    return config


def with_workers(
    config: TrainConfig, num_executors: int, num_actors: int, num_threads: int
) -> TrainConfig:
    """Returns the same run with other numbers of workers."""
    return replace(
        config,
        actors=replace(config.actors, num_executors=num_executors, num_actors=num_actors),
        learner=replace(config.learner, num_threads=num_threads),
    )


@dataclass(frozen=True)
class Fingerprint:
    """The digests and metrics that equal runs share: all but those of wall-clock time."""

    params: str
    optimizer: str
    rollouts: str
    metrics: list[dict[str, Any]]


def fingerprint(run_dir: Path) -> Fingerprint:
    """Reads the fingerprint of a complete run."""
    summary = json.loads((run_dir / "summary.json").read_text())
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return Fingerprint(
        summary["params_sha256"],
        summary["optimizer_sha256"],
        summary["rollouts_sha256"],
        [
            {name: value for name, value in json.loads(line).items() if name[:5] != "time/"}
            for line in lines
        ],
    )


def run(config: TrainConfig, run_dir: Path, checkpoint: Path | None = None) -> Fingerprint:
    """Trains in this process and its workers; returns the fingerprint."""
    run_dir.mkdir(parents=True, exist_ok=True)
    outcome = runner.train(config, run_dir, checkpoint)
    assert outcome.signum is None
    return fingerprint(run_dir)


def slots(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the slots in a run's checkpoints, in order."""
    checkpoints = [load_checkpoint(p) for p in sorted((run_dir / "checkpoints").glob("*.ckpt"))]
    return [
        {name[5:]: array for name, array in c.arrays.items() if name.startswith("slot/")}
        for c in checkpoints
        if c.meta["interval"] > 0
    ]


def command(*words: str) -> list[str]:
    """Returns the command line of `htsrl WORDS` for this interpreter."""
    return [sys.executable, "-m", "htsrl_cli", *words]


def environment() -> dict[str, str]:
    """Returns environment variables for a subprocess in any folder."""
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def htsrl(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `htsrl WORDS` to its end."""
    return subprocess.run(
        command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
