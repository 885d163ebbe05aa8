"""Throughput of several machines: a model, and how well it predicts two ranks over a slow link.

    python -m scripts.ranks_model --seconds 20

Two ranks on this machine train over the loopback device, and then over links between two network
namespaces (`scripts.network_link`, which needs Linux and root rights). The model takes the times of
collecting and learning from the first run, and predicts the rates of the others. It also predicts
how efficient 2 to 64 machines are on usual networks.

In the model, a rollout takes the longer of collecting and learning. Each optimizer step exchanges
gradients, which prolongs learning. With two ranks, an exchange is one collective operation, and
with more it is two. Gloo's `all_gather` passes parts along a ring, so it has as many stages as
there are other ranks; `all_to_all` has one stage. In a stage, sender and receiver first agree and
then send, each of which takes a round trip.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.interruption import exit_on_sigterm
from scripts.network_link import Link
from scripts.provenance import result_path, write_result
from scripts.reference.markdown import table

WORDS = ("env=atari/pong", "algo=ppo", "learner.num_shards=2", "bench.runners=[hts]")
# Names of networks, seconds that a message takes, and bits per second.
NETWORKS = {
    "1 Gbit/s, 0.1 ms": (0.1e-3, 1e9),
    "10 Gbit/s, 0.05 ms": (0.05e-3, 10e9),
    "100 Gbit/s, 0.01 ms": (0.01e-3, 100e9),
    "1 Gbit/s, 10 ms": (10e-3, 1e9),
}
LOOPBACK = "none (loopback)"
MEASURED = {"1 Gbit/s, 10 ms": (10e-3, 1e9), "200 Mbit/s, 1 ms": (1e-3, 200e6)}
SIZES = (2, 4, 8, 16, 32, 64)
# Messages of a stage that follow one another: two round trips.
_MESSAGES = 4


@dataclass(frozen=True)
class Work:
    """The work of a rank for a rollout.

    Attributes:
        env_steps: env steps of all ranks.
        collecting_s: seconds until a slot is full.
        learning_s: seconds of an update without exchanges.
        optimizer_steps: optimizer steps of an update.
        megabytes: size of a gradient.
    """

    env_steps: int
    collecting_s: float
    learning_s: float
    optimizer_steps: int
    megabytes: float

    def exchange_s(self, size: int, delay_s: float, bits_per_s: float) -> float:
        """Returns the seconds in which `size` ranks sum a gradient."""
        whole_s = 8e6 * self.megabytes / bits_per_s
        stage_s = _MESSAGES * delay_s
        if size == 1:
            return 0.0
        if size == 2:
            return stage_s + whole_s
        to_all_s = stage_s + whole_s * (size - 1) / size
        return to_all_s + (size - 1) * (stage_s + whole_s / size)

    def rollout_s(self, size: int, delay_s: float, bits_per_s: float) -> float:
        """Returns the seconds of a rollout if each of `size` ranks has this work."""
        exchange_s = self.optimizer_steps * self.exchange_s(size, delay_s, bits_per_s)
        return max(self.collecting_s, self.learning_s + exchange_s)


def work_of(bench: Mapping[str, Any], env_steps: int, optimizer_steps: int) -> Work:
    """Returns the work of a rank from the result of `htsrl bench` with two ranks.

    Args:
        env_steps: env steps of a rollout of all ranks.
    """
    rollout_s = env_steps / _rate(bench)
    learning = _share(bench, "learner_busy") - _share(bench, "exchange")
    return Work(
        env_steps,
        _share(bench, "collecting") * rollout_s,
        learning * rollout_s,
        optimizer_steps,
        bench["exchange"]["megabytes"],
    )


def overhead_table(result: Mapping[str, Any]) -> str:
    """Returns a table that compares two ranks with one process on the same cores."""
    bench = result["benches"][LOOPBACK]
    alone, together = _rate(bench, "hts, one process"), _rate(bench)
    sums = [f"{1000 * bench['exchange'][name]:.0f} ms" for name in ("sum_s", "all_reduce_s")]
    row = (f"{alone:,.0f}", f"{together:,.0f}", f"{together / alone:.0%}", *sums)
    heads = ("one process, env steps/s", "two ranks", "efficiency", "exchange", "all_reduce")
    return table(heads, [row])


def predicted_table(result: Mapping[str, Any]) -> str:
    """Returns a table of predicted and measured env steps per second, for each link."""
    work = Work(**result["work"])
    rows = []
    for name, bench in result["benches"].items():
        predicted = "-"
        if name in MEASURED:
            predicted = f"{work.env_steps / work.rollout_s(2, *MEASURED[name]):,.0f}"
        rows.append((name, predicted, f"{_rate(bench):,.0f}", f"{_share(bench, 'exchange'):.0%}"))
    heads = ("link between two ranks", "env steps/s by the model", "measured", "time in exchanges")
    return table(heads, rows)


def efficiency_table(result: Mapping[str, Any]) -> str:
    """Returns a table of the model's efficiency for each number of machines and each network."""
    work = Work(**result["work"])
    alone_s = work.rollout_s(1, 0.0, 1.0)
    rows = [
        (str(size), *(f"{alone_s / work.rollout_s(size, *net):.0%}" for net in NETWORKS.values()))
        for size in SIZES
    ]
    return table(("machines", *NETWORKS), rows)


def _rate(bench: Mapping[str, Any], name: str = "hts") -> float:
    return float(statistics.median(run["rate"] for run in bench["runs"] if run["name"] == name))


def _share(bench: Mapping[str, Any], key: str) -> float:
    shares = [run["times"][key] for run in bench["runs"] if run["name"] == "hts"]
    return float(statistics.median(shares))


def _bench(words: Sequence[str], link: Link | None) -> dict[str, Any]:
    """Runs `htsrl bench` with two ranks; returns the content of its result file."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        own = ["bench", *words, f"hydra.run.dir={folder}"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        commands = [[*launcher, "--nproc-per-node=2", "-m", "htsrl_cli", *own]]
        if link:
            # Each namespace counts as a machine, but the two share the cores.
            cores = ["actors.num_executors=1", "learner.num_threads=1"]
            commands = [link.torchrun(side, [*own, *cores]) for side in (0, 1)]
        ranks = [subprocess.Popen(command) for command in commands]
        for rank in ranks:
            stack.callback(rank.kill)
        if max([rank.wait() for rank in ranks]):
            sys.exit("a benchmark failed")
        content: dict[str, Any] = json.loads((Path(folder) / "bench.json").read_text())
        return content


TABLES = (overhead_table, predicted_table, efficiency_table)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs for each rate")
    parser.add_argument("--output", type=Path, default=result_path("ranks"))
    args = parser.parse_args()
    exit_on_sigterm()
    words = [*WORDS, f"bench.repeats={args.repeats}", f"bench.seconds={args.seconds}"]
    benches = {LOOPBACK: _bench(words, None)}
    for name, (delay_s, bits_per_s) in MEASURED.items():
        with Link(delay_s, bits_per_s) as link:
            benches[name] = _bench(words, link)
    # Sizes of the default configuration of Pong with PPO.
    work = work_of(benches[LOOPBACK], env_steps=16 * 128, optimizer_steps=16)
    result = {"work": asdict(work), "benches": benches}
    write_result(args.output, result)
    print(*(show(result) for show in TABLES), sep="\n\n")


if __name__ == "__main__":
    main()
