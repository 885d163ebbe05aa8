"""Ranks that end, hang, or compute something else: the run ends and names them."""

from __future__ import annotations

import os
import platform
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from scripts.network_link import Link
from tests.fault.processes import Run, wait_until, without_leftovers
from tests.harness import command
from tests.ranks import CARTPOLE, Start, rank_processes, results, start

__all__ = ["start"]

LONG = (*(word for word in CARTPOLE if not word.startswith("total_steps")), "total_steps=12800")

# Starts htsrl; rank 1 first does something else.
AS_RANK = """
import os, sys
if os.environ.get("RANK") == "1":
    {}
from htsrl_cli.cli.main import main
sys.exit(main())
"""

# Rank 1 says when it waits for rank 0, which does not come.
WAITING = """
import os, pathlib, sys, time
from htsrl_cli.ranks import group

if os.environ["RANK"] == "0":
    time.sleep(600)
meet = group.meet

def say_and_meet(*args):
    pathlib.Path("waits").touch()
    return meet(*args)

group.meet = say_and_meet
from htsrl_cli.cli.main import main
sys.exit(main())
"""

# The main process imports the environment's module. It flips a bit of a parameter in rank 1.
FLIPPING = """
import os
import gymnasium
from htsrl_cli.learning.learner import Learner

update = Learner.update

def flip(self, *args):
    metrics = update(self, *args)
    if os.environ["RANK"] == "1" and self.num_updates_done == 3:
        next(self.policies.parameters()).detach().view(-1).numpy().view("uint32")[0] ^= 1
    return metrics

Learner.update = flip
gymnasium.register("Flipping-v0", "gymnasium.envs.classic_control:CartPoleEnv", 500)
"""


@pytest.mark.slow("starts 4 ranks")
def test_a_killed_rank_is_named(start: Start) -> None:
    run = start(4, "run", *LONG)
    run.wait_for_steps(1000)
    killed = rank_processes(run)[2]
    killed.kill()
    assert run.wait() == 1
    assert f"lost the connection to rank 2 ({platform.node()}, process {killed.pid})" in run.stderr
    assert run.checkpoint().meta["env_steps"] > 0


def test_a_rank_that_hangs_is_named_and_killed(start: Start) -> None:
    run = start(2, "run", *LONG, "runner.rank_timeout_s=4")
    run.wait_for_steps(1000)
    hanging = rank_processes(run)[1]
    hanging.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert run.wait() == 1
    # torchrun alone would wait for 30 seconds before it kills a process that does not end.
    while run.processes() and time.monotonic() - began < 60:
        time.sleep(0.1)
    assert not run.processes()
    assert (
        f"waited in vain for rank 1 ({platform.node()}, process {hanging.pid}): raise "
        "runner.rank_timeout_s if it is only slow" in run.stderr
    )
    assert run.checkpoint().meta["env_steps"] > 0


def test_a_rank_that_waits_at_the_start_ends_with_its_torchrun(tmp_path: Path) -> None:
    """Kills one of two `torchrun`; the store through which ranks meet belongs to the other."""
    (tmp_path / "script.py").write_text(WAITING)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={port}", "--log-dir=logs"]
    with without_leftovers() as runs:
        for side in range(2):
            (tmp_path / str(side)).mkdir()
            line = [*launcher, f"--node-rank={side}", str(tmp_path / "script.py"), "train", *LONG]
            runs.append(Run(tmp_path / str(side), command_line=line))
        first, second = runs
        wait_until((tmp_path / "1" / "waits").exists, "rank 1 waits for rank 0")
        second.process.kill()
        second.wait()
        wait_until(lambda: not second.processes(), "rank 1 ends", 20)
        rank_processes(first)[0].kill()
        assert first.wait() == 1


def _lonely_rank(folder: Path, port: int) -> Run:
    """Starts rank 1 of 2 as another launcher than `torchrun` does; rank 0 never comes."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "1", "WORLD_SIZE": "2"}
    return Run(folder, command_line=command("train", *LONG), env=place)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_rank_that_waits_for_an_answer(tmp_path: Path, signum: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, without_leftovers() as runs:
        runs.append(_lonely_rank(tmp_path, server.getsockname()[1]))
        server.settimeout(120)
        connection, _ = server.accept()
        with connection:
            runs[0].process.send_signal(signum)
            assert runs[0].wait() == -signum


def test_a_store_that_goes_while_ranks_meet(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with without_leftovers() as runs:
        runs.append(_lonely_rank(tmp_path, store.port))
        shared = dist.PrefixStore("htsrl/0", store)  # type: ignore[attr-defined]
        wait_until(partial(shared.check, ["name/1"]), "rank 1 waits for rank 0", 120)
        place = f"127.0.0.1:{store.port}"
        del shared, store
        assert runs[0].wait() == 1
        (line,) = [line for line in runs[0].stderr.splitlines() if "htsrl: error:" in line]
        assert "rank 1 of 2 cannot meet the others at MASTER_ADDR:MASTER_PORT = " + place in line
        assert "Traceback" not in runs[0].stderr


@pytest.fixture
def link() -> Iterator[Link]:
    """A link of 1 Gbit/s with a delay of 10 ms between two network namespaces."""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs Linux, root rights and the command ip")
    with Link(0.010, 1e9) as link:
        yield link


@pytest.mark.slow("starts two ranks twice, and one process")
def test_a_network_that_goes(link: Link, start: Start, tmp_path: Path) -> None:
    whole = start(1, "whole", *CARTPOLE)
    assert whole.wait() == 0, whole.stderr
    words = ("train", *CARTPOLE, "runner.rank_timeout_s=5", "resume=auto")
    folders = [tmp_path / "host_0", tmp_path / "host_1"]
    with without_leftovers() as runs:
        for is_lost in (True, False):
            for side, folder in enumerate(folders):
                folder.mkdir(exist_ok=True)
                # torchrun leaves this folder if a rank fails.
                line = link.torchrun(side, words, f"--log-dir={tmp_path / 'logs'}")
                runs.append(Run(folder, command_line=line))
            first, second = runs[-2:]
            if is_lost:
                first.wait_for_steps(500)
                link.is_up = False
                assert (first.wait(), second.wait()) == (1, 1)
                assert "waited in vain for rank 1" in first.stderr + second.stderr
                link.is_up = True
        assert first.wait() == 0, first.stderr
        assert second.wait() == 0, second.stderr
    assert "resumed from" in first.stderr
    assert results(first) == results(whole)


@pytest.mark.slow("starts 3 ranks twice, and one process")
def test_torchrun_starts_ranks_again(start: Start) -> None:
    whole = start(1, "whole", *LONG)
    assert whole.wait() == 0, whole.stderr
    run = start(2, "run", *LONG, "resume=auto", options=("--max-restarts=3",))
    run.wait_for_steps(2000)
    rank_processes(run)[1].kill()
    assert run.wait() == 0, run.stderr
    assert "resumed from" in run.stderr
    assert results(run) == results(whole)


@pytest.mark.slow("starts 21 times up to 4 ranks")
def test_random_kills(start: Start) -> None:
    """Kills a random rank 20 times, often during a checkpoint, as each rollout has one."""
    rng = random.Random(0)
    words = (*(word for word in LONG if not word.startswith("checkpoint")), "resume=auto")
    words += ("checkpoint.interval=128",)
    whole = start(1, "whole", *words)
    assert whole.wait() == 0, whole.stderr
    for _ in range(20):
        size = rng.choice([1, 2, 4])
        run = start(size, "run", *words)
        run.wait_for_steps(run.env_steps + 128 * rng.randrange(2, 5))
        time.sleep(rng.random() / 10)
        ranks = rank_processes(run) if size > 1 else [psutil.Process(run.process.pid)]
        rng.choice(ranks).kill()
        assert run.wait() != 0
    run = start(2, "run", *words)
    assert run.wait() == 0, run.stderr
    assert results(run) == results(whole)


@pytest.mark.parametrize(
    ("different", "said"),
    [
        pytest.param(
            "os.environ['ONEDNN_MAX_CPU_ISA'] = 'SSE41'",
            "computes with other bits than rank 0",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "sys.argv.append('algo.gamma=0.9'); os.execv(sys.executable, "
            "[sys.executable, '-m', 'htsrl_cli', *sys.argv[1:]])",
            "rank 1 has the command",
            marks=pytest.mark.slow,
        ),
        (
            "import htsrl_cli; htsrl_cli.__version__ = '0.0.1'",
            "rank 1 has htsrl 0.0.1, but rank 0 has",
        ),
    ],
)
def test_a_rank_that_is_different_is_refused(different: str, said: str, start: Start) -> None:
    pong = ("env=atari/pong", "total_steps=256", "learner.num_shards=2", "hydra.run.dir=run")
    small = ("actors.num_envs=4", "actors.num_executors=1", "runner.sync_interval=16")
    run = start(2, "run", *pong, *small, script=AS_RANK.format(different))
    assert run.wait() == 1
    assert said in run.stderr
    assert not (run.folder / "run" / "checkpoints").exists()


@pytest.mark.slow("starts 2 ranks")
def test_a_rank_with_another_parameter_ends_the_run(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "flipping.py").write_text(FLIPPING)
    words = [word for word in CARTPOLE if not word.startswith("env.id")]
    words += ["runner=serial", "env.id=flipping:Flipping-v0", "learner.check_interval=2"]
    run = start(2, "run", *words)
    assert run.wait() == 1
    assert "rank 1 and rank 0 have different parameters after update 4: " in run.stderr
