"""The determinism contract in football: workers, runners, kills and resumes change no bit."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import sections
from tests.harness import NO_FOOTBALL

pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)

from htsrl_cli.config.sections import TrainConfig
from tests import harness
from tests.determinism import test_resume as resuming
from tests.determinism.auditor import audit
from tests.determinism.test_contract import torment

KEEPER = sections.football(
    "academy_3_vs_1_with_keeper", representation="simple115v2", frame_stack=1
)
IMAGES = replace(KEEPER, representation="extracted", frame_stack=2)
THREE = replace(KEEPER, num_left_players=3)
NUM_ENVS, SYNC_INTERVAL = 16, 8

BOTH = replace(KEEPER, scenario="5_vs_5", num_left_players=2, num_right_players=2)
# The environment, `algo.policies` and `algo.correction`.
TEAMS = {
    "one": (KEEPER, "shared", "none"),
    "three-shared": (THREE, "shared", "none"),
    "three-shared-decoupled": (THREE, "shared", "decoupled"),
    "three-independent": (THREE, "independent", "none"),
    "three-independent-vtrace": (THREE, "independent", "vtrace"),
    "three-images": (replace(IMAGES, num_left_players=3), "shared", "none"),
    "both-sides": (BOTH, "independent", "none"),
    "one-images": (IMAGES, "shared", "none"),
}


def football_config(
    team: str, runner: str = "hts", num_rollouts: int = 10, precision: str = "fp32"
) -> TrainConfig:
    """Returns a small run; its episodes are short, as random policies soon lose the ball."""
    env, policies, correction = TEAMS[team]
    config = harness.small_config("truncating", "ppo", precision, runner=runner)
    algo = replace(harness.PPO, policies=policies, correction=correction)
    steps = NUM_ENVS * SYNC_INTERVAL
    return replace(
        config,
        env=env,
        algo=algo,
        actors=replace(config.actors, num_envs=NUM_ENVS),
        runner=replace(config.runner, sync_interval=SYNC_INTERVAL),
        checkpoint=sections.checkpoint(interval=3 * steps, keep=100),
        log=sections.log(interval=2 * steps, tensorboard=False),
        total_steps=num_rollouts * steps,
    )


@pytest.mark.slow
@pytest.mark.parametrize("team", TEAMS)
def test_runners_workers_and_resumes_change_nothing(team: str, tmp_path: Path) -> None:
    expected = harness.run(football_config(team, "serial"), tmp_path / "serial")
    config = football_config(team)
    by_others = harness.with_workers(config, 4, 2, 2)
    assert harness.run(by_others, tmp_path / "hts") == expected
    slots = harness.slots(tmp_path / "hts")
    if team != "both-sides":
        ends = sum(int((slot["episode_lengths"] > 0).sum()) for slot in slots)
        assert ends > 0
    by_few = harness.with_workers(config, 1, 1, 1)
    files = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))
    assert harness.run(by_few, tmp_path / "hts", files[2]) == expected


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Kills a run with SIGKILL at any moment and resumes with other worker counts."""
    config = football_config("three-shared", num_rollouts=14)
    expected = harness.run(config, tmp_path / "uninterrupted")
    arguments = [*resuming.words(config), "hydra.run.dir=run", "resume=auto"]
    process = resuming.start(*arguments, "actors.num_executors=4", cwd=tmp_path)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, (tmp_path / "output").read_text()[-2000:]
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process = resuming.start(*arguments, "actors.num_actors=2", cwd=tmp_path)
    assert process.wait() == 0, (tmp_path / "output").read_text()[-2000:]
    assert harness.fingerprint(tmp_path / "run") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "team",
    ["one-images", "three-images", "three-shared-decoupled", "three-independent-vtrace"],
)
def test_kills_at_random_moments(team: str, tmp_path: Path) -> None:
    config = football_config(team, num_rollouts=160)
    config = replace(config, checkpoint=replace(config.checkpoint, keep=2))
    expected = harness.run(config, tmp_path / "uninterrupted")
    killed, _ = resuming.kill_and_resume(config, 6, tmp_path)
    assert killed >= 2
    assert harness.fingerprint(tmp_path / "run") == expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("team", ["one-images", "three-independent"])
def test_workers_stopped_at_random(team: str, precision: str, tmp_path: Path) -> None:
    config = football_config(team, precision=precision)
    expected = harness.run(harness.with_workers(config, 8, 1, 2), tmp_path / "calm")
    with torment(seed=2) as stopped:
        tormented = harness.with_workers(config, 2, 2, 1)
        assert harness.run(tormented, tmp_path / "tormented") == expected
    assert len(stopped) > 10


@pytest.mark.slow
@pytest.mark.parametrize("team", ["one-images", "three-shared", "three-independent"])
def test_runs_replay(team: str, tmp_path: Path) -> None:
    """Runs the auditor, which restores every environment at every barrier and replays."""
    config = football_config(team, num_rollouts=5)
    steps = NUM_ENVS * SYNC_INTERVAL
    config = replace(config, checkpoint=sections.checkpoint(interval=steps, keep=100))
    harness.run(harness.with_workers(config, 2, 2, 2), tmp_path)
    found = audit(tmp_path)
    assert (found.slots, found.links) == (5, 5)


@pytest.mark.slow
def test_rendered_runs(tmp_path: Path) -> None:
    """Runs the command itself: its main process builds an environment twice before the workers do.

    Two runs of two environments are equal; with one environment, `hts` and `serial` are equal.
    """
    arguments = [
        *resuming.env_words(replace(KEEPER, representation="pixels_gray")),
        "algo=a2c",
        "runner.sync_interval=4",
        "total_steps=24",
        "log.interval=8",
    ]
    two = [*arguments, "actors.num_envs=2", "actors.num_executors=2"]
    one = [*arguments, "actors.num_envs=1", "actors.num_executors=1"]
    runs = {"a": two, "b": two, "c": one, "d": [*one, "runner=serial"]}
    for name, words in runs.items():
        done = harness.htsrl("train", *words, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b, c, d = (harness.fingerprint(tmp_path / name) for name in runs)
    assert a == b
    assert c == d


LONG = {
    "5_vs_5": BOTH,
    "11_vs_11": replace(KEEPER, scenario="11_vs_11_stochastic"),
}


@pytest.mark.slow
@pytest.mark.parametrize("match", LONG)
def test_keyframes_change_nothing(match: str, tmp_path: Path) -> None:
    """Resumes before, at and after a keyframe, from which the match itself is restored."""
    config = football_config("one", "serial")
    steps = 4 * 50
    config = replace(
        config,
        env=LONG[match],
        actors=replace(config.actors, num_envs=4),
        runner=replace(config.runner, sync_interval=50),
        checkpoint=sections.checkpoint(interval=steps, keep=100),
        total_steps=13 * steps,
    )
    expected = harness.run(config, tmp_path / "serial")
    config = replace(config, runner=replace(config.runner, name="hts"))
    assert harness.run(harness.with_workers(config, 4, 2, 2), tmp_path / "hts") == expected
    lengths = np.concatenate([s["episode_lengths"].flat for s in harness.slots(tmp_path / "hts")])
    assert lengths.max(initial=0) == 0, "matches go on beyond their keyframe"
    files = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))
    for number in (12, 11, 10, 8):
        by_few = harness.with_workers(config, 2, 1, 1)
        assert harness.run(by_few, tmp_path / "hts", files[number]) == expected
