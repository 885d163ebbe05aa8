"""Ranks: a run that `torchrun` divides among processes has the results of one process.

Ranks also differ in their numbers of executors and threads here. A run goes on with any number of
ranks after a stop or a kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fault.processes import Run, wait_until, without_leftovers
from tests.harness import NEEDS_BF16, NO_FOOTBALL, command

WORDS = (
    "learner.num_shards=4",
    "actors.num_envs=8",
    "actors.num_executors=2",
    "actors.num_actors=1",
    "checkpoint.interval=512",
    "log.interval=256",
    "log.tensorboard=false",
    "hydra.run.dir=run",
)
VECTOR = (*WORDS, "env=gym", "tuned=none", "network.hidden_sizes=[16]", "runner.sync_interval=16")
PPO = ("algo=ppo", "algo.num_minibatches=2", "algo.update_epochs=2")
CARTPOLE = (*VECTOR, *PPO, "env.id=CartPole-v1", "total_steps=3072")
PONG = (*WORDS, "env=atari/pong", "runner.sync_interval=16", "total_steps=768")
# Each environment of football needs a process of its own.
TEAM = (
    *(word for word in WORDS if not word.startswith("actors.num_executors")),
    "actors.num_executors=8",
    "env=football/academy_3_vs_1_with_keeper",
    "env.num_left_players=3",
)
KINDS = {
    "cartpole": CARTPOLE,
    "correction": (*CARTPOLE, "algo.correction=decoupled"),
    "evaluated": (*CARTPOLE, "eval.interval=1024", "eval.episodes=2"),
    "sync": (*CARTPOLE, "runner=sync"),
    "serial": (*CARTPOLE, "runner=serial"),
    "gaussian": (*VECTOR, *PPO, "env.id=Pendulum-v1", "total_steps=3072"),
    "squashed": (*VECTOR, *PPO, "env.id=Pendulum-v1", "algo.squash=tanh", "total_steps=3072"),
    "normalized": (
        *VECTOR,
        *PPO,
        "env.id=Pendulum-v1",
        "env.max_episode_steps=20",
        "env.normalize_obs=true",
        "env.normalize_reward=true",
        "total_steps=3072",
    ),
    "impala": (*VECTOR, "algo=impala", "env.id=CartPole-v1", "total_steps=3072"),
    "pong-ppo": (*PONG, *PPO),
    "pong-a2c": (*PONG, "algo=a2c"),
    "pong-bf16": (*PONG, *PPO, "actors.precision=bf16", "learner.precision=bf16"),
    "football": (*TEAM, *PPO, "runner.sync_interval=16", "total_steps=512"),
    "football-independent": (
        *TEAM,
        *PPO,
        "algo.policies=independent",
        "runner.sync_interval=16",
        "total_steps=512",
    ),
}
Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Returns a function that trains with some ranks in a folder; checks that nothing is left."""
    with without_leftovers() as runs:

        def start(ranks: int, folder: str, *words: str) -> Run:
            (tmp_path / folder).mkdir(exist_ok=True)
            line = command("train", *words)
            if ranks > 1:
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                # torchrun leaves this folder if a rank fails.
                launcher += [f"--nproc-per-node={ranks}", f"--log-dir={tmp_path / 'logs'}"]
                line = [*launcher, *line[1:]]
            one_thread = {"OMP_NUM_THREADS": "1"}
            runs.append(Run(tmp_path / folder, command_line=line, env=one_thread))
            return runs[-1]

        yield start


def results(run: Run) -> tuple[Any, ...]:
    """Returns hashes, and lines of metrics without wall-clock values.

    The line of an evaluated policy is written when its scores arrive, so lines are sorted.
    """
    summary = json.loads((run.folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    timeless.sort(key=lambda line: (line["env_steps"], "eval/return_mean" in line))
    hashes = [summary[f"{name}_sha256"] for name in ("params", "optimizer", "rollouts")]
    return hashes, summary["is_exact"], summary["metric"], timeless


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        pytest.param(
            kind,
            ranks,
            marks=[
                *([NEEDS_BF16] if kind.endswith("bf16") else []),
                *([] if (kind, ranks) == ("evaluated", 2) else [pytest.mark.slow]),
            ],
        )
        for kind in KINDS
        for ranks in (2, 4)
    ],
)
def test_ranks_change_nothing(kind: str, ranks: int, start: Start) -> None:
    if kind.startswith("football"):
        pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    found = []
    for number in (1, ranks):
        run = start(number, f"of_{number}", *KINDS[kind])
        assert run.wait() == 0, run.stderr
        found.append(results(run))
    assert found[0] == found[1]


def rank_processes(run: Run) -> list[psutil.Process]:
    """Returns the processes of the ranks, in order."""
    found = [p for p in run.processes() if p.ppid() == run.process.pid and "train" in p.cmdline()]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


@pytest.mark.slow("starts 9 processes one after the other")
def test_a_killed_and_a_stopped_rank(start: Start) -> None:
    words = [word for word in CARTPOLE if not word.startswith("total_steps")]
    whole = start(1, "whole", *words, "total_steps=12800")
    assert whole.wait() == 0, whole.stderr
    killed = start(4, "run", *words, "total_steps=12800")
    killed.wait_for_steps(2000)
    rank_processes(killed)[2].kill()
    assert killed.wait() == 1
    # Only one of two ranks hears of the end.
    stopped = start(2, "run", "resume=run", "actors.num_executors=1")
    stopped.wait_for_steps(6000)
    os.kill(rank_processes(stopped)[1].pid, signal.SIGTERM)
    wait_until(lambda: not stopped.processes(), "the end of all ranks")
    assert stopped.checkpoint().meta["env_steps"] < 12800
    resumed = start(1, "run", "resume=run", "learner.num_threads=2")
    assert resumed.wait() == 0, resumed.stderr
    assert results(resumed) == results(whole)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("learner.num_shards=1",), "cannot be divided among 2 ranks"),
        (("runner=async", "algo=impala", "learner.num_shards=1"), "trains on one rank only"),
    ],
)
@pytest.mark.slow("starts several processes for each case")
def test_ranks_that_do_not_fit_are_refused(words: tuple[str, ...], said: str, start: Start) -> None:
    kept = [word for word in CARTPOLE if not word.startswith(("learner.num_shards", "algo"))]
    run = start(2, "run", *kept, *words)
    assert run.wait() == 1
    assert said in run.stderr
    assert not (run.folder / "checkpoints").exists()
