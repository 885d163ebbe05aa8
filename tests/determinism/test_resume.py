"""Resumes: the run equals an uninterrupted one, whatever stopped it and for any workers."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from htsrl_cli.algorithms.impala.config import ImpalaConfig
from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.config.kinds import AlgoConfig, EnvConfig
from htsrl_cli.config.sections import AsyncRunnerConfig, RunnerConfig, TrainConfig
from htsrl_cli.envs.football.config import FootballConfig
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.envs.synthetic.config import SyntheticConfig
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.sampling.requests import Request
from tests import harness, sections, warm
from tests.fault.processes import wait_until
from tests.harness import IMAGE_PRECISION, STEPS_PER_ROLLOUT, Fingerprint

LONG_ROLLOUTS = 400


def env_words(env: EnvConfig) -> list[str]:
    """Returns the overrides that select the environment: football, Gymnasium, or others."""
    if isinstance(env, GymConfig):
        return [
            *("env=gym", "tuned=none", f"env.id={env.id}"),
            f"env.max_episode_steps={env.max_episode_steps}",
        ]
    if isinstance(env, SyntheticConfig):
        option = "synthetic/sleep"
        names = ["mean_ms", "episode_length", "truncate", "num_players"]
    elif isinstance(env, FootballConfig):
        option = f"football/{env.scenario}"
        names = ["representation", "frame_stack", "num_left_players", "num_right_players"]
    else:
        option = "atari/breakout"
        names = ["game", "max_num_frames_per_episode", "screen_size", "frame_stack"]
    return [f"env={option}", *(f"env.{name}={getattr(env, name)}" for name in names)]


def algo_words(algo: AlgoConfig) -> list[str]:
    """Returns the overrides that select PPO or IMPALA as in the harness."""
    names = ["policies", "learning_rate", "max_weight", "vtrace_rho", "vtrace_c"]
    if isinstance(algo, ImpalaConfig):
        names += ["max_grad_norm"]
    else:
        assert isinstance(algo, PpoConfig)
        names += ["correction", "update_epochs"]
    return [f"algo={algo.name}", *(f"algo.{name}={getattr(algo, name)}" for name in names)]


def runner_words(runner: RunnerConfig) -> list[str]:
    """Returns the overrides that select the runner."""
    names = ["sync_interval"]
    if isinstance(runner, AsyncRunnerConfig):
        names += ["unrolls_per_update", "spare_unrolls", "record"]
        names += ["replay"] if runner.replay else []
    return [f"runner={runner.name}", *(f"runner.{name}={getattr(runner, name)}" for name in names)]


def words(config: TrainConfig) -> list[str]:
    """Returns the overrides that give `config`."""
    return [
        *env_words(config.env),
        *algo_words(config.algo),
        *runner_words(config.runner),
        "network.linear_kernel=product",
        f"network.memory={config.network.memory}",
        f"network.memory_size={config.network.memory_size}",
        f"actors.num_envs={config.actors.num_envs}",
        f"actors.precision={config.actors.precision}",
        f"learner.precision={config.learner.precision}",
        f"learner.micro_batch={config.learner.micro_batch}",
        f"checkpoint.interval={config.checkpoint.interval}",
        f"log.interval={config.log.interval}",
        "log.tensorboard=false",
        f"seed={config.seed}",
        f"total_steps={config.total_steps}",
    ]


def workers(rng: random.Random) -> list[str]:
    """Draws worker counts; returns them as overrides."""
    return [
        f"actors.num_executors={rng.choice([1, 3, 4, 7, 16])}",
        f"actors.num_actors={rng.choice([1, 2])}",
        f"learner.num_threads={rng.choice([1, 2])}",
    ]


def start(*arguments: str, cwd: Path) -> warm.Command:
    return warm.Command(
        *("train", *arguments),
        cwd=cwd,
        environment=harness.environment(),
        stdout=cwd / "output",
        stderr=cwd / "output",
    )


def writes_checkpoint(pid: int) -> bool:
    """Returns True if a process is writing a checkpoint that has no name yet."""
    links = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    try:
        return any("/checkpoints/#" in link for link in links)
    except FileNotFoundError:
        return False


def newest_step(run_dir: Path) -> int:
    """Returns the env steps of the newest checkpoint; -1 if there is none."""
    names = [path.stem for path in (run_dir / "checkpoints").glob("step_*.ckpt")]
    return max((int(name.removeprefix("step_")) for name in names), default=-1)


def kill(process: warm.Command, run_dir: Path, rng: random.Random, in_checkpoint: bool) -> bool:
    """Kills a run at a random moment after a new checkpoint.

    Args:
        in_checkpoint: try for some seconds to hit a moment when it writes a checkpoint.

    Returns:
        True if it was writing a checkpoint.
    """
    before = newest_step(run_dir)
    while process.poll() is None and newest_step(run_dir) <= before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 1.5))
    deadline = time.monotonic() + 3.0
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        writing = writes_checkpoint(process.pid)
        if writing or not in_checkpoint or time.monotonic() > deadline:
            process.kill()
            process.wait()
            return writing
        process.send_signal(signal.SIGCONT)
        time.sleep(rng.uniform(0.0, 0.002))
    return False


def step_of(run_dir: Path) -> int:
    return int(find_checkpoint(run_dir).stem.removeprefix("step_"))


def no_process_in(folder: Path) -> bool:
    """Returns True if no process runs in `folder`."""
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder):
                return False
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return True


def kill_and_resume(config: TrainConfig, num_kills: int, folder: Path) -> tuple[int, int]:
    """Kills and resumes a run repeatedly, then lets it end.

    Returns:
        The number of kills, and of those during the writing of a checkpoint.
    """
    rng, run_dir = random.Random(5), folder / "run"
    arguments = [*words(config), "hydra.run.dir=run", "resume=auto"]
    killed = writing = 0
    while killed < num_kills:
        process = start(*arguments, *workers(rng), cwd=folder)
        writing += kill(process, run_dir, rng, in_checkpoint=killed % 2 == 1)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, (folder / "output").read_text()[-2000:]
        killed += 1
        leftovers = [p.name for p in run_dir.rglob("*") if p.suffix in (".part", ".tmp")]
        assert not leftovers
    process = start(*arguments, *workers(rng), cwd=folder)
    assert process.wait() == 0, (folder / "output").read_text()[-2000:]
    return killed, writing


def long_config(num_rollouts: int, env: str = "atari", algo: str = "ppo") -> TrainConfig:
    """Returns a run with a checkpoint at every second barrier, so that kills often hit one."""
    return replace(
        harness.small_config(env, algo),
        total_steps=num_rollouts * STEPS_PER_ROLLOUT,
        checkpoint=sections.checkpoint(interval=2 * STEPS_PER_ROLLOUT, keep=2),
    )


# Long enough to be stopped before its end.
STOPPED = long_config(24)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    return harness.run(STOPPED, tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.slow
def test_two_kills(tmp_path: Path, uninterrupted: Fingerprint) -> None:
    killed, _ = kill_and_resume(STOPPED, 2, tmp_path)
    assert killed >= 1
    assert harness.fingerprint(tmp_path / "run") == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "algo"), [("atari", "decoupled"), ("atari", "vtrace"), ("gaussian", "vtrace")]
)
def test_kills_under_a_correction(env: str, algo: str, tmp_path: Path) -> None:
    config = long_config(100, env, algo)
    expected = harness.run(config, tmp_path / "uninterrupted")
    killed, _ = kill_and_resume(config, 4, tmp_path)
    assert killed >= 2
    assert harness.fingerprint(tmp_path / "run") == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_some_while_writing(tmp_path: Path) -> None:
    config = long_config(LONG_ROLLOUTS)
    expected = harness.run(config, tmp_path / "uninterrupted")
    killed, writing = kill_and_resume(config, 24, tmp_path)
    print(f"{killed} kills, {writing} while a checkpoint was being written")
    assert killed >= 20
    assert writing >= 3
    assert harness.fingerprint(tmp_path / "run") == expected


def test_sigterm_and_resume_by_other_workers(tmp_path: Path, uninterrupted: Fingerprint) -> None:
    arguments = [*words(STOPPED), "hydra.run.dir=run"]
    process = start(*arguments, "actors.num_executors=3", cwd=tmp_path)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, (tmp_path / "output").read_text()[-2000:]
        time.sleep(0.1)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert 0 < step_of(tmp_path / "run") < STOPPED.total_steps
    # Python's resource tracker ends shortly after the process that it serves.
    wait_until(lambda: no_process_in(tmp_path), "the end of all processes")
    process = start("resume=run", "actors.num_executors=7", "learner.num_threads=1", cwd=tmp_path)
    assert process.wait() == 0, (tmp_path / "output").read_text()[-2000:]
    assert harness.fingerprint(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize(
    ("env", "algo", "precision", "runner"),
    [
        # A2C keeps activations, which checkpoints do not hold.
        *(
            pytest.param(
                *("atari", "a2c", precision, "hts"),
                marks=() if precision == IMAGE_PRECISION else pytest.mark.slow,
            )
            for precision in ("fp32", "bf16")
        ),
        ("truncating", "decoupled", "fp32", "hts"),
        pytest.param("atari", "vtrace", "fp32", "hts", marks=pytest.mark.slow),
        pytest.param("atari", "decoupled", "bf16", "serial", marks=pytest.mark.slow),
        pytest.param("truncating", "vtrace", "bf16", "hts", marks=pytest.mark.slow),
        pytest.param("gaussian", "decoupled", "fp32", "hts", marks=pytest.mark.slow),
        pytest.param("gaussian", "vtrace", "fp32", "hts", marks=pytest.mark.slow),
        pytest.param("truncating", "a2c", "fp32", "hts", marks=pytest.mark.slow),
        pytest.param("truncating", "a2c", "bf16", "serial", marks=pytest.mark.slow),
        pytest.param("truncating", "ppo", "bf16", "hts", marks=pytest.mark.slow),
        pytest.param("truncating", "a2c", "fp32", "sync", marks=pytest.mark.slow),
        pytest.param("atari", "a2c", "fp32", "serial", marks=pytest.mark.slow),
        pytest.param("atari", "a2c", "bf16", "sync", marks=pytest.mark.slow),
    ],
)
def test_every_checkpoint_leads_to_the_same_end(
    env: str, algo: str, precision: str, runner: str, tmp_path: Path
) -> None:
    """Resumes from several checkpoints, also from one between two lines of metrics."""
    config = harness.small_config(env, algo, precision, runner=runner)
    config = replace(
        config, checkpoint=sections.checkpoint(interval=3 * STEPS_PER_ROLLOUT, keep=100)
    )
    expected = harness.run(config, tmp_path)
    files = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    assert len(files) == 9
    for path in reversed(files[1::5]):
        config = harness.with_workers(config, 4, 1, 1)
        assert harness.run(config, tmp_path, path) == expected


def test_actors_that_do_not_repeat_exactly_leave_the_slot_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Patches the actor that recomputes activations, the only one in this process."""
    config = harness.small_config("atari", "a2c", IMAGE_PRECISION)
    config = replace(config, total_steps=6 * STEPS_PER_ROLLOUT)
    expected = harness.run(config, tmp_path)
    serve = Actor.serve

    def serve_otherwise(self: Actor, requests: Sequence[Request]) -> None:
        serve(self, requests)
        self._ring.slot(self._ring.rollout).log_probs[:] += 1

    monkeypatch.setattr(Actor, "serve", serve_otherwise)
    path = sorted((tmp_path / "checkpoints").glob("*.ckpt"))[0]
    assert harness.run(config, tmp_path, path) == expected
    assert "the policy's recomputed outputs for the saved observations differ" in caplog.text


@pytest.mark.slow
def test_multirun_equals_single_runs(tmp_path: Path) -> None:
    arguments = words(long_config(24))
    multi = harness.htsrl(
        "train", "-m", *arguments, "seed=1,2", "hydra.sweep.dir=multi", cwd=tmp_path
    )
    assert multi.returncode == 0, multi.stderr
    for job, seed in ((0, 1), (1, 2)):
        single = harness.htsrl(
            "train", *arguments, f"seed={seed}", f"hydra.run.dir=single{seed}", cwd=tmp_path
        )
        assert single.returncode == 0, single.stderr
        ours = harness.fingerprint(tmp_path / "multi" / f"{job}_seed-{seed}")
        assert ours == harness.fingerprint(tmp_path / f"single{seed}")
