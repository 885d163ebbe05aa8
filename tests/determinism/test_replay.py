"""Replays of asynchronous runs: the same bits as the recorded run, for any workers and timing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from htsrl_cli.config.sections import AsyncRunnerConfig, TrainConfig
from htsrl_cli.runners import wiring
from htsrl_cli.sampling.schedule import SCHEDULE_FILE, Schedule
from tests import harness, sections
from tests.conftest import Htsrl
from tests.determinism import test_resume as resuming
from tests.determinism.test_contract import torment
from tests.harness import NEEDS_BF16, STEPS_PER_ROLLOUT, Fingerprint

slow = pytest.mark.slow

KEEPER = {"representation": "simple115v2", "frame_stack": 1, "num_left_players": 3}
FOOTBALL = sections.football("academy_3_vs_1_with_keeper", **KEEPER)
ENVS = {
    **{name: harness.ENVS[name] for name in ("terminating", "truncating", "gaussian")},
    "pong": sections.atari(
        game="pong", max_num_frames_per_episode=720, screen_size=44, frame_stack=2
    ),
    "players": sections.synthetic("sleep", episode_length=7, truncate=True, num_players=3),
    "football": FOOTBALL,
}


def free_config(
    env: str, *, policies: str = "shared", precision: str = "fp32", num_rollouts: int = 16
) -> TrainConfig:
    """Returns a small asynchronous run, which makes two updates for each rollout of the harness."""
    config = harness.small_config("truncating", "impala", precision, runner="async")
    assert isinstance(config.runner, AsyncRunnerConfig)
    return replace(
        config,
        env=ENVS[env],
        algo=replace(config.algo, policies=policies),
        runner=replace(config.runner, unrolls_per_update=8, spare_unrolls=4, record=True),
        checkpoint=sections.checkpoint(interval=2 * STEPS_PER_ROLLOUT, keep=100),
        total_steps=num_rollouts * STEPS_PER_ROLLOUT,
    )


def replay_of(config: TrainConfig, recorded: Path, record: bool = False) -> TrainConfig:
    assert isinstance(config.runner, AsyncRunnerConfig)
    return replace(config, runner=replace(config.runner, record=record, replay=str(recorded)))


def schedule_of(folder: Path) -> Schedule:
    return Schedule.load(folder / SCHEDULE_FILE)


def can_go_wrong(schedule: Schedule) -> bool:
    """Returns True if a wrong replay of a schedule would show.

    Unrolls arrived in another order than that of the environments, the policy lag varied, and
    versions changed within unrolls.
    """
    unrolls = [unroll for unrolls in schedule.updates for unroll in unrolls]
    in_turns = [i % harness.NUM_ENVS for i in range(len(unrolls))]
    lags = {
        update - version
        for update, unrolls in enumerate(schedule.updates)
        for unroll in unrolls
        for _, version in chain(*unroll.versions)
    }
    return (
        [unroll.env for unroll in unrolls] != in_turns
        and len(lags) > 1
        and any(len(runs) > 1 for unroll in unrolls for runs in unroll.versions)
    )


@dataclass(frozen=True)
class Recorded:
    """A recorded run."""

    config: TrainConfig
    folder: Path
    fingerprint: Fingerprint

    def replay(self, run_dir: Path, *workers: int, checkpoint: Path | None = None) -> Fingerprint:
        """Replays the run with other numbers of executors, actors and learner threads.

        The replay is itself recorded, and has the same schedule.
        """
        config = replay_of(self.config, self.folder, record=True)
        found = harness.run(harness.with_workers(config, *workers), run_dir, checkpoint)
        assert schedule_of(run_dir) == schedule_of(self.folder)
        return found


def record(config: TrainConfig, folder: Path) -> Recorded:
    """Records a run. The timing of a run may be too even to test anything; then records again."""
    for attempt in range(10):
        run_dir = folder / str(attempt)
        found = harness.run(harness.with_workers(config, 2, 2, 1), run_dir)
        if can_go_wrong(schedule_of(run_dir)):
            return Recorded(config, run_dir, found)
    raise AssertionError("all runs had an even timing")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recorded]:
    """Returns a function that returns a recorded run, the same for the same arguments."""
    runs: dict[tuple[str, str, str], Recorded] = {}

    def get(env: str, policies: str = "shared", precision: str = "fp32") -> Recorded:
        key = env, policies, precision
        if key not in runs:
            config = free_config(env, policies=policies, precision=precision)
            runs[key] = record(config, tmp_path_factory.mktemp(env))
        return runs[key]

    return get


# Environment, `algo.policies` and precision; the marks of those that `make test` leaves out.
KINDS: dict[tuple[str, str, str], Any] = {
    ("terminating", "shared", "fp32"): (),
    ("truncating", "shared", "fp32"): (),
    ("gaussian", "shared", "fp32"): slow,
    ("truncating", "shared", "bf16"): (slow, NEEDS_BF16),
    ("players", "shared", "fp32"): slow,
    ("players", "independent", "fp32"): slow,
    ("pong", "shared", "fp32"): slow,
    ("pong", "shared", "bf16"): (slow, NEEDS_BF16),
    ("football", "shared", "fp32"): slow,
    ("football", "independent", "fp32"): slow,
}


def kinds(workers: dict[tuple[int, int, int], str]) -> list[Any]:
    """Returns kinds of runs with numbers of workers, of which `make test` takes one for each kind.

    Args:
        workers: for numbers of workers, the environment for which `make test` takes them.
    """
    return [
        pytest.param(
            *(kind, numbers),
            marks=marks or (() if kind[0] == fast else slow),
            id=f"{'-'.join(kind)}-{numbers}",
        )
        for kind, marks in KINDS.items()
        for numbers, fast in workers.items()
    ]


WORKERS = {(1, 1, 1): "terminating", (2, 1, 2): "", (4, 2, 2): "truncating", (16, 2, 1): ""}


@pytest.mark.parametrize(("kind", "workers"), kinds(WORKERS))
def test_number_of_workers_changes_nothing(
    recorded: Callable[..., Recorded],
    kind: tuple[str, str, str],
    workers: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    if kind[0] == "football":
        pytest.importorskip("gfootball_engine", reason=harness.NO_FOOTBALL)
    run = recorded(*kind)
    assert run.replay(tmp_path, *workers) == run.fingerprint


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=marks or (slow if k[0] == "terminating" else ()), id="-".join(k))
        for k, marks in KINDS.items()
    ],
)
def test_workers_stopped_at_random(
    recorded: Callable[..., Recorded], kind: tuple[str, str, str], tmp_path: Path
) -> None:
    if kind[0] == "football":
        pytest.importorskip("gfootball_engine", reason=harness.NO_FOOTBALL)
    run = recorded(*kind)
    with torment(seed=1) as stopped:
        assert run.replay(tmp_path, 3, 2, 1) == run.fingerprint
    assert len(stopped) > 20


@slow
@pytest.mark.parametrize("env", ["terminating", "truncating", "players"])
def test_a_run_recorded_under_stops_is_replayed(env: str, tmp_path: Path) -> None:
    """Replays a run with much policy lag, because its workers were stopped at random."""
    with torment(seed=2):
        run = record(free_config(env), tmp_path / "recorded")
    assert schedule_of(run.folder).max_lag > 2
    assert run.replay(tmp_path / "replay", 4, 1, 2) == run.fingerprint


@slow
def test_free_runs_differ(recorded: Callable[..., Recorded], tmp_path: Path) -> None:
    """Two free runs of one configuration differ, so a replay says something."""
    run = recorded("truncating")
    again = harness.run(harness.with_workers(run.config, 4, 1, 1), tmp_path)
    assert again.rollouts != run.fingerprint.rollouts
    assert again.params != run.fingerprint.params


@slow
def test_actors_in_threads_change_nothing(
    recorded: Callable[..., Recorded], tmp_path: Path
) -> None:
    run = recorded("truncating")
    config = replay_of(run.config, run.folder)
    config = replace(config, actors=replace(config.actors, host="thread", num_actors=2))
    assert harness.run(config, tmp_path) == run.fingerprint


@slow
@pytest.mark.parametrize("env", ["truncating", "players", "pong"])
def test_fixed_rows(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each environment has its own rows of a pass, as if bits depended on the row."""
    monkeypatch.setattr(wiring, "has_free_rows", lambda *_: False)
    run = record(free_config(env), tmp_path / "recorded")
    assert run.replay(tmp_path / "replay", 4, 1, 2) == run.fingerprint


# Resumes


@slow
@pytest.mark.parametrize(
    ("env", "policies"),
    [
        ("truncating", "shared"),
        ("terminating", "shared"),
        ("players", "independent"),
        ("pong", "shared"),
    ],
)
def test_every_checkpoint_of_a_replay_leads_to_the_same_end(
    recorded: Callable[..., Recorded], env: str, policies: str, tmp_path: Path
) -> None:
    run = recorded(env, policies)
    assert run.replay(tmp_path, 2, 1, 2) == run.fingerprint
    files = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    for path in reversed(files[1::5]):
        assert run.replay(tmp_path, 4, 1, 1, checkpoint=path) == run.fingerprint
        assert json.loads((tmp_path / "summary.json").read_text())["is_exact"] is True


def by_command(config: TrainConfig, folder: Path, *words: str) -> Fingerprint:
    """Runs a command to its end in `folder`; returns the fingerprint."""
    output = folder / "output"
    process = resuming.start(*resuming.words(config), "hydra.run.dir=recorded", *words, cwd=folder)
    assert process.wait() == 0, output.read_text()[-2000:]
    return harness.fingerprint(folder / "recorded")


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Returns a run that was recorded by command."""
    folder, config = tmp_path_factory.mktemp("commanded"), long_config("truncating", 24)
    return Recorded(config, folder / "recorded", by_command(config, folder))


def kill_and_resume(run: Recorded, num_kills: int, folder: Path) -> None:
    """Kills a replay by SIGKILL at random moments and resumes it with other workers."""
    killed, _ = resuming.kill_and_resume(replay_of(run.config, run.folder), num_kills, folder)
    assert killed >= 1
    assert harness.fingerprint(folder / "run") == run.fingerprint
    assert json.loads((folder / "run" / "summary.json").read_text())["is_exact"] is True


def long_config(env: str, num_rollouts: int, policies: str = "shared") -> TrainConfig:
    config = free_config(env, policies=policies, num_rollouts=num_rollouts)
    return replace(config, checkpoint=replace(config.checkpoint, keep=2))


@slow
@pytest.mark.parametrize(
    ("env", "policies", "num_rollouts", "num_kills"),
    [
        ("terminating", "shared", 250, 8),
        ("players", "independent", 150, 6),
        ("pong", "shared", 100, 6),
        ("football", "shared", 60, 3),
    ],
)
def test_kills_of_a_replay(
    env: str, policies: str, num_rollouts: int, num_kills: int, tmp_path: Path
) -> None:
    if env == "football":
        pytest.importorskip("gfootball_engine", reason=harness.NO_FOOTBALL)
    config = long_config(env, num_rollouts, policies)
    expected = by_command(config, tmp_path)
    kill_and_resume(Recorded(config, tmp_path / "recorded", expected), num_kills, tmp_path)


def test_a_kill_of_a_replay(commanded: Recorded, tmp_path: Path) -> None:
    kill_and_resume(commanded, 1, tmp_path)


@slow
@pytest.mark.parametrize(
    ("env", "num_rollouts", "num_kills"),
    [("truncating", 40, 1), ("terminating", 250, 5)],
)
def test_a_recorded_run_that_was_killed_is_replayed(
    env: str, num_rollouts: int, num_kills: int, tmp_path: Path
) -> None:
    config = long_config(env, num_rollouts)
    killed, _ = resuming.kill_and_resume(config, num_kills, tmp_path)
    assert killed >= 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["is_exact"] is False, "a free run does not resume exactly"
    replay = replay_of(config, tmp_path / "run")
    assert by_command(replay, tmp_path, "actors.num_executors=3") == harness.fingerprint(
        tmp_path / "run"
    )


@slow
def test_a_stopped_replay_goes_on(tmp_path: Path) -> None:
    config = long_config("truncating", 100)
    expected = by_command(config, tmp_path)
    words = [*resuming.words(replay_of(config, tmp_path / "recorded")), "hydra.run.dir=run"]
    rng = random.Random(3)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = resuming.start(*words, "resume=auto", *resuming.workers(rng), cwd=tmp_path)
        before = resuming.newest_step(tmp_path / "run")
        while process.poll() is None and resuming.newest_step(tmp_path / "run") <= before:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait() == 128 + number, (tmp_path / "output").read_text()[-2000:]
    process = resuming.start("resume=run", "actors.num_executors=3", cwd=tmp_path)
    assert process.wait() == 0, (tmp_path / "output").read_text()[-2000:]
    assert harness.fingerprint(tmp_path / "run") == expected


@slow
def test_a_replay_that_continues_a_free_run_is_exact_or_says_otherwise(
    commanded: Recorded, tmp_path: Path, htsrl: Htsrl
) -> None:
    """A free run's checkpoint lacks the old versions with which late environments are served."""
    shutil.copytree(commanded.folder, tmp_path / "run")
    *_, last = sorted((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    last.unlink()
    words = resuming.words(replay_of(commanded.config, commanded.folder))
    resumed = htsrl("train", *words, "hydra.run.dir=run", "resume=auto")
    if resumed.returncode == 0:
        is_exact = json.loads((tmp_path / "run" / "summary.json").read_text())["is_exact"]
        assert (harness.fingerprint(tmp_path / "run") == commanded.fingerprint) or not is_exact
    else:
        assert resumed.returncode == 2
        assert resumed.stderr.startswith("htsrl: error: ")
        assert resumed.stderr.count("\n") == 1


# Schedules that do not fit


def a_schedule(run: Recorded, folder: Path, num_lines: int, more: str = "") -> Path:
    """Writes the first lines of a run's schedule to a folder."""
    kept = (run.folder / SCHEDULE_FILE).read_text().splitlines(keepends=True)[:num_lines]
    (folder / SCHEDULE_FILE).write_text("".join(kept) + more)
    return folder


def a_folder_as_schedule(folder: Path) -> Path:
    (folder / SCHEDULE_FILE).mkdir()
    return folder


BAD: dict[str, tuple[Callable[[Recorded, Path], Path], list[str], str]] = {
    "missing": (lambda _, folder: folder / "nothing", [], "the folder has no schedule.jsonl"),
    "a folder": (
        lambda _, folder: a_folder_as_schedule(folder),
        [],
        "schedule.jsonl cannot be read: Is a directory",
    ),
    "truncated": (
        lambda run, folder: a_schedule(run, folder, 30, '{"update": 29, "unr'),
        [],
        "schedule.jsonl is damaged",
    ),
    "empty": (lambda run, folder: a_schedule(run, folder, 0), [], "schedule.jsonl is damaged"),
    "foreign": (lambda run, _: run.folder, ["seed=8"], "its run had other settings"),
    "other algorithm": (
        lambda run, _: run.folder,
        ["algo.gamma=0.9"],
        "its run had other settings",
    ),
    "too short": (
        lambda run, folder: a_schedule(run, folder, 11),
        [],
        "the recorded run has made 10 updates",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_schedule_that_does_not_fit_is_refused(
    commanded: Recorded, name: str, tmp_path: Path, htsrl: Htsrl
) -> None:
    make, words, why = BAD[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    replayed = make(commanded, folder)
    before = sorted(tmp_path.rglob("*"))
    config = replay_of(commanded.config, replayed)
    refused = htsrl("train", *resuming.words(config), *words, "hydra.run.dir=run")
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.startswith(f"htsrl: error: runner.replay={replayed}: {why}")
    assert refused.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@slow
def test_a_resume_whose_schedule_is_gone_changes_nothing(
    commanded: Recorded, tmp_path: Path, htsrl: Htsrl
) -> None:
    folder = a_schedule(commanded, tmp_path, 1000)
    words = resuming.words(replay_of(commanded.config, folder))
    assert htsrl("train", *words, "hydra.run.dir=run").returncode == 0
    for path in sorted((tmp_path / "run" / "checkpoints").glob("*.ckpt"))[2:]:
        path.unlink()
    (folder / SCHEDULE_FILE).unlink()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    refused = htsrl("train", "resume=run")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"htsrl: error: runner.replay={folder}: the folder has no")
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert after == before
