"""Training throughput of htsrl and of other libraries on a task, and the machine's bound.

    python -m scripts.compare_peers pong_ppo --sb3 SB3_VENV/bin/python --sample-factory ...

Each run is a fresh process. The variants of htsrl take turns with the other libraries. All of them
use the same game, network, algorithm and number of passes over each sample (see
scripts/peer_*.py), except for the variant `async IMPALA`: htsrl's asynchronous runner with the
algorithm and the settings of its IMPALA presets, one pass over each sample. Rollouts have these
sizes:

    pong_ppo   PPO, 4 epochs. htsrl: 16 environments x 128 env steps. Stable-Baselines3 with its
               published Atari settings: 8 x 128. Sample Factory, asynchronous: 16 x 128
    pong_a2c   A2C, one pass. htsrl: 16 environments x 20 env steps (and 16 x 5).
               Stable-Baselines3 with its published Atari settings: 16 x 5
    football   PPO, 2 epochs. All: 16 environments x 128 env steps. With Stable-Baselines3, each
               environment is in its own process

Each peer (one of the other libraries) runs in its own virtual environment. Stable-Baselines3 runs
both as installed and with settings of malloc that keep large freed blocks, as in htsrl. Targets are
relative to the fastest peer and to the machine's bound. Rates count env steps (on Pong, an env step
is 4 frames) and do not include the start of a run.

The machine's bound is the rate at which its cores could train if they did nothing but env steps,
forward passes and gradients. It is computed from the rates of a single thread, which are measured
at the start of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from htsrl_cli.bench.measured_run import MeasuredRun, busy_cores, measure
from htsrl_cli.bench.microbenchmarks import OneThread
from htsrl_cli.machine import cpu_words, has_bf16
from scripts.interruption import exit_on_sigterm
from scripts.measured_runs import (
    Comparison,
    compose,
    median,
    show,
    show_medians,
    write_runs,
)
from scripts.provenance import result_path

# The same settings as in htsrl_cli/networks/device.py.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass(frozen=True)
class Peer:
    """A library that htsrl is compared with.

    Attributes:
        library: `sb3` or `sample_factory`, the parsed argument that holds the path of the Python
            interpreter with this library.
        script: the file in this folder that runs the library.
        tasks: names of the tasks that the script can run.
        variables: additional environment variables of the process.
    """

    library: str
    script: str
    tasks: tuple[str, ...]
    variables: dict[str, str]


SB3_TASKS = ("pong_ppo", "pong_a2c", "football")
PEERS = {
    "SB3": Peer("sb3", "peer_stable_baselines3.py", SB3_TASKS, {}),
    "SB3 kept memory": Peer("sb3", "peer_stable_baselines3.py", SB3_TASKS, KEPT_MEMORY),
    "Sample Factory": Peer("sample_factory", "peer_sample_factory.py", ("pong_ppo",), {}),
}
BF16 = ("actors.precision=bf16", "learner.precision=bf16")
FP32 = ("actors.precision=fp32", "learner.precision=fp32")


@dataclass(frozen=True)
class Variant:
    """A way to run htsrl.

    Attributes:
        words: overrides in addition to the task's.
        target: minimum ratio of the variant's median rate to the fastest peer's; 0 for none.
        of_bound: minimum ratio of the variant's median rate to the machine's bound; if 0, the bound
            is not measured.
    """

    words: tuple[str, ...]
    target: float
    of_bound: float = 0.0


PONG_A2C = ("algo=a2c", "runner.sync_interval=20")
PONG_IMPALA = Variant(("experiment=atari_impala", *(BF16 if has_bf16() else FP32)), 0.0)
FOOTBALL_PPO = ("experiment=football_ppo",)
FOOTBALL_IMPALA = Variant(("experiment=football_impala", *(BF16 if has_bf16() else FP32)), 0.0)
TASKS: dict[str, tuple[tuple[str, ...], dict[str, Variant]]] = {
    "pong_ppo": (
        ("env=atari/pong",),
        {
            "bf16": Variant(("algo=ppo", *BF16), 2.9, 0.9),
            "fp32": Variant(("algo=ppo", *FP32), 2.0 if "avx512f" in cpu_words() else 1.6, 0.9),
            "bf16 uncorrected": Variant(("algo=ppo", *BF16, "algo.correction=none"), 1.0),
            "sync fp32": Variant(("algo=ppo", "runner=sync", *FP32), 1.0),
            "async IMPALA": PONG_IMPALA,
        },
    ),
    "pong_a2c": (
        ("env=atari/pong",),
        {
            "bf16": Variant((*PONG_A2C, *BF16), 2.2, 0.85),
            "fp32": Variant((*PONG_A2C, *FP32), 2.2, 0.85),
            "bf16 x 5": Variant(("algo=a2c", "runner.sync_interval=5", *BF16), 1.0, 0.75),
            "sync fp32": Variant((*PONG_A2C, "runner=sync", *FP32), 1.0),
            "async IMPALA": PONG_IMPALA,
        },
    ),
    "football": (
        ("env=football/academy_3_vs_1_with_keeper",),
        {
            "bf16": Variant((*FOOTBALL_PPO, *BF16), 1.8, 0.9),
            "fp32": Variant((*FOOTBALL_PPO, *FP32), 1.8, 0.9),
            "sync fp32": Variant((*FOOTBALL_PPO, "runner=sync", *FP32), 1.0),
            "async IMPALA": FOOTBALL_IMPALA,
        },
    ),
}


def is_bf16(variant: Variant) -> bool:
    """Returns True if the variant computes in bf16."""
    return set(BF16) <= set(variant.words)


def run_peer(name: str, args: argparse.Namespace) -> MeasuredRun:
    """Measures a run of `PEERS[name]`; returns its figures."""
    busy = busy_cores()
    peer = PEERS[name]
    script = Path(__file__).with_name(peer.script)
    python = getattr(args, peer.library)
    command = [python, str(script), args.task, "--seconds", str(args.seconds)]
    environment = os.environ | peer.variables
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit code {run.returncode}:\n{run.stderr[-2000:]}")
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    env_steps = lines[-1]["env_steps"] - lines[0]["env_steps"]
    seconds = lines[-1]["seconds"] - lines[0]["seconds"]
    return MeasuredRun(name, env_steps / seconds, env_steps, seconds, {}, {}, 0.0, busy)


def show_bounds(
    variants: dict[str, Variant], one_thread: dict[str, list[OneThread]], runs: list[MeasuredRun]
) -> list[Comparison]:
    """Prints one-thread rates and the bound computed from them, for each variant and round.

    Returns:
        The ratio of each variant's median rate to the median of its bounds, with its target.
    """
    print("The machine's bound, from one-thread rates per second")
    comparisons = []
    for name, rounds in one_thread.items():
        for rates in rounds:
            print(
                f"  {name:<16} env {rates.env:.0f}, inference {rates.inference:.0f}, "
                f"train {rates.train:.0f}: bound {rates.bound:.1f} env steps/s"
            )
        bound = statistics.median(rates.bound for rates in rounds)
        reached = median(runs, name) / bound
        comparisons.append(Comparison(f"{name} / bound", reached, variants[name].of_bound))
    return comparisons


def main() -> int:
    """Runs all rounds and writes the results; returns 1 if a target is missed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per run (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument(
        "--micro-seconds",
        type=float,
        default=3.0,
        help="seconds per measurement of a one-thread rate (default: 3)",
    )
    parser.add_argument("--sb3", help="Python interpreter with stable-baselines3")
    parser.add_argument("--sample-factory", help="Python interpreter with sample-factory")
    args = parser.parse_args()
    exit_on_sigterm()
    peers = [
        name
        for name, peer in PEERS.items()
        if getattr(args, peer.library) and args.task in peer.tasks
    ]
    if not peers:
        parser.error("give --sb3 PYTHON, or --sample-factory PYTHON (only for the task pong_ppo)")
    words, variants = TASKS[args.task]
    if not has_bf16():
        print("This processor has no bf16 instructions: fp32 only")
        variants = {name: variant for name, variant in variants.items() if not is_bf16(variant)}
    runs: list[MeasuredRun] = []
    one_thread: dict[str, list[OneThread]] = {
        name: [] for name, variant in variants.items() if variant.of_bound
    }
    for number in range(args.repeats):
        print(f"Round {number + 1}")
        for name, rounds in one_thread.items():
            config = compose([*words, *variants[name].words])
            rounds.append(OneThread.measure(config, args.micro_seconds))
        for name, variant in variants.items():
            runs.append(show(measure(name, [*words, *variant.words], args.seconds)))
        runs += [show(run_peer(name, args)) for name in peers]
    show_medians(runs)
    fastest = max(peers, key=lambda name: median(runs, name))
    comparisons = show_bounds(variants, one_thread, runs) + [
        Comparison(
            f"{name} / {fastest}", median(runs, name) / median(runs, fastest), variant.target
        )
        for name, variant in variants.items()
        if variant.target
    ]
    for comparison in comparisons:
        comparison.show()
    bounds = {
        name: [{**asdict(rates), "bound": rates.bound} for rates in rounds]
        for name, rounds in one_thread.items()
    }
    write_runs(result_path(f"compare_peers_{args.task}"), runs, comparisons, {"one_thread": bounds})
    return 0 if all(comparison.holds for comparison in comparisons) else 1


if __name__ == "__main__":
    raise SystemExit(main())
