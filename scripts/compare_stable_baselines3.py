"""Training throughput of PPO against Stable-Baselines3 and the machine, on Pong or on football.

    python -m scripts.compare_stable_baselines3 pong --peer-python OTHER_VENV/bin/python

Every run is a fresh process; the variants take turns. htsrl has 16 environments x 128 steps a slot.
On Pong, with 4 epochs, Stable-Baselines3 has its published Atari setting, 8 environments x 128
steps; on football, with 2, the same 16 environments, each in a process (SubprocVecEnv). Both in
minibatches of 256 (scripts/stable_baselines3_ppo.py), once as installed and once with an allocator
that keeps large blocks, which htsrl sets for itself: targets compare with the faster of the two.
Rates count env steps (of 4 frames on Pong) and leave out start-up and the first interval.

The machine's bound is what its cores could do if they were always busy with nothing but env steps,
forward passes and gradients: cores / (1 / env + 1 / inference + epochs / train), from one-thread
rates that are measured between the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from htsrl_cli.config import PpoConfig
from scripts import microbenchmarks
from scripts.measured_runs import (
    ROOT,
    Comparison,
    Line,
    Measurement,
    busy_cores,
    median,
    num_cores,
    show_medians,
    train,
    write_report,
)

# Environment variables of Stable-Baselines3's process; see htsrl_cli/torch_setup.py for the second.
PEERS: dict[str, dict[str, str]] = {
    "SB3": {},
    "SB3 kept memory": {
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    },
}
BF16 = ("actors.precision=bf16", "learner.precision=bf16")
FP32 = ("actors.precision=fp32", "learner.precision=fp32")
VARIANTS: dict[str, tuple[str, ...]] = {
    "htsrl bf16": BF16,
    "htsrl fp32": FP32,
    "htsrl sync fp32": ("runner=sync", *FP32),
}
# Whose bound is measured.
BOUNDED = ("htsrl bf16", "htsrl fp32")


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        words: overrides of all of htsrl's variants.
        targets: what a variant's median over that of the faster peer has to be at least.
    """

    words: tuple[str, ...]
    targets: dict[str, float]


TASKS = {
    "pong": Task(
        ("env=atari/pong", "algo=ppo", "algo.update_epochs=4", "actors.num_envs=16"),
        {"htsrl bf16": 2.4, "htsrl fp32": 1.6, "htsrl sync fp32": 1.0},
    ),
    "football": Task(
        ("experiment=football_ppo", "env=football/academy_3_vs_1_with_keeper"),
        {"htsrl bf16": 1.8, "htsrl fp32": 1.8, "htsrl sync fp32": 1.0},
    ),
}


@dataclass(frozen=True)
class OneThread:
    """One-thread rates per second: env steps, rows of forward passes, rows of gradients."""

    env: float
    inference: float
    train: float
    epochs: int

    @classmethod
    def measure(cls, task: Task, variant: str, seconds: float) -> OneThread:
        """The rates that `variant` depends on, each measured for `seconds`."""
        config = microbenchmarks.compose([*task.words, *VARIANTS[variant]])
        assert isinstance(config.algo, PpoConfig)
        return cls(
            microbenchmarks.env_rate(config, seconds),
            microbenchmarks.inference_rate(config, seconds),
            microbenchmarks.train_rate(config, seconds),
            config.algo.update_epochs,
        )

    @property
    def bound(self) -> float:
        """Env steps per second that all cores could train on at most."""
        return num_cores() / (1 / self.env + 1 / self.inference + self.epochs / self.train)


def run_peer(python: str, task: str, env_steps: int, variables: dict[str, str]) -> list[Line]:
    """Stable-Baselines3's lines, with additional environment variables."""
    script = ROOT / "scripts" / "stable_baselines3_ppo.py"
    command = [python, str(script), task, "--env-steps", str(env_steps)]
    run = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {run.returncode}:\n{run.stderr[-2000:]}")
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def run_round(args: argparse.Namespace, folder: Path) -> list[Measurement]:
    """Every variant once, then the peers."""
    measurements = []
    for name in (*VARIANTS, *PEERS):
        busy = busy_cores()
        if name in PEERS:
            lines = run_peer(args.peer_python, args.task, args.env_steps, PEERS[name])
        else:
            words = [*TASKS[args.task].words, *VARIANTS[name], f"total_steps={args.env_steps}"]
            lines = train(words, folder / name.replace(" ", "-"))
        measurements.append(Measurement.of(name, lines, busy))
        measurements[-1].show()
    return measurements


def show_bounds(one_thread: dict[str, list[OneThread]], measurements: list[Measurement]) -> None:
    """Prints one-thread rates, bounds and the fractions of them that were reached."""
    print("The machine's bound; one-thread rates per second")
    for name, rounds in one_thread.items():
        for rates in rounds:
            print(
                f"  {name:<16} env {rates.env:.0f}, inference {rates.inference:.0f}, "
                f"train {rates.train:.0f}: bound {rates.bound:.1f} env steps/s"
            )
        bound = statistics.median(rates.bound for rates in rounds)
        reached = median(measurements, name)
        print(f"  {name:<16} {reached:.1f} of {bound:.1f}: {reached / bound:.1%}")


def main() -> int:
    """Runs all rounds; the exit code is 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--env-steps", type=int, default=20_480, help="of a run (default: 20480)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument(
        "--micro-seconds", type=float, default=3.0, help="of a microbenchmark (default: 3)"
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="the interpreter that has stable-baselines3 (default: this one)",
    )
    args = parser.parse_args()
    task = TASKS[args.task]
    measurements: list[Measurement] = []
    one_thread: dict[str, list[OneThread]] = {name: [] for name in BOUNDED}
    for number in range(args.repeats):
        print(f"Round {number + 1}")
        for name, rounds in one_thread.items():
            rounds.append(OneThread.measure(task, name, args.micro_seconds))
        with tempfile.TemporaryDirectory(prefix="compare-") as folder:
            measurements += run_round(args, Path(folder))
    show_medians(measurements)
    show_bounds(one_thread, measurements)
    peer = max(PEERS, key=lambda name: median(measurements, name))
    comparisons = [
        Comparison(
            f"{name} / {peer}", median(measurements, name) / median(measurements, peer), target
        )
        for name, target in task.targets.items()
    ]
    for comparison in comparisons:
        comparison.show()
    bounds = {
        name: [{**vars(rates), "bound": rates.bound} for rates in rounds]
        for name, rounds in one_thread.items()
    }
    output = Path(f"runs/compare_stable_baselines3_{args.task}.json")
    write_report(output, measurements, comparisons, {"one_thread": bounds})
    return 0 if all(comparison.holds for comparison in comparisons) else 1


if __name__ == "__main__":
    raise SystemExit(main())
