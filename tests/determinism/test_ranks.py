"""Ranks: a run that `torchrun` divides among processes has the results of one process.

Ranks also differ in their numbers of executors and threads here. A run goes on with any number of
ranks after a stop or a kill.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.fault.processes import wait_until
from tests.harness import NEEDS_BF16, NO_FOOTBALL
from tests.ranks import CARTPOLE, PPO, VECTOR, WORDS, Start, rank_processes, results, start

__all__ = ["start"]

PONG = (*WORDS, "env=atari/pong", "runner.sync_interval=16", "total_steps=768")
# Each environment of football needs a process of its own.
TEAM = (
    *(word for word in WORDS if not word.startswith("actors.num_executors")),
    "actors.num_executors=8",
    "env=football/academy_3_vs_1_with_keeper",
    "env.num_left_players=3",
)
# Starts htsrl with networks whose values depend on a row's position in the pass.
POSITIONAL = """
import sys
import torch
from htsrl_cli.cli.main import main
from htsrl_cli.networks.actor_critic import ActorCritic

heads = ActorCritic._heads

def positional(policy, features):
    params, values = heads(policy, features)
    return params, values + torch.arange(len(values)) / 64

ActorCritic._heads = positional
# Executors import this file.
if __name__ == "__main__":
    sys.exit(main())
"""
# Starts htsrl; rank 1 has other numbers of workers and threads.
UNLIKE = """
import os
import sys
from htsrl_cli.cli.main import main

# Executors import this file.
if __name__ == "__main__":
    if os.environ.get("RANK") == "1":
        sys.argv += ["actors.num_executors=1", "actors.num_actors=2", "learner.num_threads=3"]
    sys.exit(main())
"""
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
    "memory": (*CARTPOLE, "network.memory=lstm", "network.memory_size=8", "algo.correction=vtrace"),
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


@pytest.mark.slow("starts 2 ranks, and one process")
@pytest.mark.parametrize("kind", ["cartpole", "pong-ppo"])
def test_ranks_with_unlike_workers_change_nothing(kind: str, start: Start) -> None:
    found = []
    for ranks, script in ((1, ""), (2, UNLIKE)):
        run = start(ranks, f"of_{ranks}", *KINDS[kind], script=script)
        assert run.wait() == 0, run.stderr
        found.append(results(run))
    assert found[0] == found[1]


@pytest.mark.slow("starts 2 ranks, and one process")
@pytest.mark.parametrize("kind", ["cartpole", "memory"])
def test_ranks_change_nothing_with_fixed_rows(kind: str, start: Start) -> None:
    """The network's bits depend on a row's position, so every column has a fixed row."""
    words = (*KINDS[kind], "actors.host=thread", "actors.inference_batch=8")
    found = []
    for ranks in (1, 2):
        run = start(ranks, f"of_{ranks}", *words, script=POSITIONAL)
        assert run.wait() == 0, run.stderr
        found.append(results(run))
    assert found[0] == found[1]


@pytest.mark.slow("makes 4 runs")
def test_benchmark_of_two_ranks(start: Start) -> None:
    own = ("bench.runners=[hts]", "bench.repeats=2", "bench.seconds=1", "hydra.run.dir=run")
    words = [w for w in CARTPOLE if not w.startswith(("hydra", "total_steps", "log.interval"))]
    bench = start(2, "run", *words, "log.interval=128", *own, verb="bench")
    assert bench.wait() == 0, bench.stderr
    result = bench.folder / "bench.json"
    found = json.loads(result.read_text())
    result.unlink()
    assert (found["ranks"], found["machines"]) == (2, 1)
    assert found["exchange"]["sum_s"] > 0
    names = [run["name"] for run in found["runs"]]
    assert names == ["hts, one process"] * 2 + ["hts"] * 2
    assert all(run["rate"] > 0 for run in found["runs"])
    assert [0 < run["times"].get("exchange", 0) < 1 for run in found["runs"]] == [False] * 2 + [
        True
    ] * 2


@pytest.mark.slow("starts three runs, two of them with 2 ranks")
def test_the_tasks_of_a_job_become_ranks(start: Start) -> None:
    words = [word for word in CARTPOLE if not word.startswith("hydra.run.dir")]
    jobs = ("-m", "launcher=local", "hydra.launcher.tasks_per_node=2", "hydra.sweep.dir=sweep")
    sweep = start(1, "of_2", *words, *jobs, "seed=1,2")
    assert sweep.wait() == 0, sweep.stderr
    whole = start(1, "of_1", *words, "seed=2", "hydra.run.dir=run")
    assert whole.wait() == 0, whole.stderr
    sweep.folder = sweep.folder.parent / "sweep" / "1_seed-2"
    assert results(sweep) == results(whole)


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
