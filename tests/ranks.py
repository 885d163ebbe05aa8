"""Runs of several ranks, for tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fault.processes import Run, without_leftovers
from tests.harness import command

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
Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Returns a function that trains with some ranks in a folder; checks that nothing is left.

    Its arguments: the number of ranks, the folder, the words after the verb, the verb, a program to
    run in the place of htsrl, and options of `torchrun`.
    """
    with without_leftovers() as runs:

        def start(
            ranks: int,
            folder: str,
            *words: str,
            verb: str = "train",
            script: str = "",
            options: tuple[str, ...] = (),
        ) -> Run:
            (tmp_path / folder).mkdir(exist_ok=True)
            line = command(verb, *words)
            if script:
                (tmp_path / "script.py").write_text(script)
                line = [sys.executable, str(tmp_path / "script.py"), "train", *words]
            if ranks > 1:
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                # torchrun leaves this folder if a rank fails.
                launcher += [f"--nproc-per-node={ranks}", f"--log-dir={tmp_path / 'logs'}"]
                line = [*launcher, *options, *line[1:]]
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


def rank_processes(run: Run) -> list[psutil.Process]:
    """Returns the processes of the ranks, in order."""
    found = [p for p in run.processes() if p.ppid() == run.process.pid and "train" in p.cmdline()]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))
