"""Comparison of htsrl and Stable-Baselines3: returns and throughput with the same hyperparameters.

    python -m scripts.compare_returns --sb3 SB3_VENV/bin/python --tasks Pendulum --seeds 5

Both libraries train on every task with every seed, and htsrl also with `runner=sync`. The
hyperparameters are the tuned settings of htsrl. Start the same command again to go on after an
interruption: complete runs are not repeated. After that, the throughput is measured: shorter runs
that take turns, one at a time. The virtual environment needs stable-baselines3, and Gymnasium's
extras `box2d` and `mujoco` for some tasks, as htsrl does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.machine import num_cores, processor
from htsrl_cli.networks.mlp.config import MlpConfig
from htsrl_cli.tracking.lines import training_lines
from scripts.interruption import exit_on_sigterm
from scripts.learning_statistics import Estimate, estimate
from scripts.measured_runs import compose, same_configurations
from scripts.provenance import ROOT, read_result, result_path, write_result
from scripts.reference.markdown import table


@dataclass(frozen=True)
class Task:
    """A task of the comparison.

    Attributes:
        env_id: Gymnasium's id.
        total_steps: env steps of a run with which returns are compared.
        target: mean return of the last 100 episodes that a run should reach; None for none.
    """

    env_id: str
    total_steps: int
    target: float | None = None

    @property
    def words(self) -> list[str]:
        """The words of the command line that set the task."""
        return [*self.without_steps, f"total_steps={self.total_steps}"]

    @property
    def without_steps(self) -> list[str]:
        """The same words without the number of env steps."""
        return ["env=gym", f"env.id={self.env_id}", "algo=ppo", "log.tensorboard=false"]


TASKS = {
    "Pendulum": Task("Pendulum-v1", 200_000, -250.0),
    "LunarLander": Task("LunarLander-v3", 1_000_000, 200.0),
    "BipedalWalker": Task("BipedalWalker-v3", 2_000_000),
    "Hopper": Task("Hopper-v5", 1_000_000),
    "HalfCheetah": Task("HalfCheetah-v5", 1_000_000),
}
# The libraries, with the words that each adds to a task; `htsrl sync` learns without policy lag.
LIBRARIES: Mapping[str, Sequence[str]] = {"htsrl": (), "htsrl sync": ("runner=sync",), "SB3": ()}
# Env steps of a run that measures throughput.
RATE_STEPS = 100_000


@dataclass(frozen=True)
class LastReturn:
    """The mean raw return of a run's last 100 episodes (`last`)."""

    task: str
    library: str
    seed: int
    last: float


@dataclass(frozen=True)
class Rate:
    """The env steps per second of a run, without its start."""

    task: str
    library: str
    rate: float


def sb3_settings(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings of `peer_sb3_returns.py` that equal a configuration of htsrl."""
    env, algo, network = config.env, config.algo, config.network
    assert isinstance(env, GymConfig)
    assert isinstance(algo, PpoConfig)
    assert isinstance(network, MlpConfig)
    assert network.separate_value
    num_rows = config.actors.num_envs * config.runner.sync_interval
    return {
        "env_id": env.id,
        "num_envs": config.actors.num_envs,
        "total_steps": config.total_steps,
        "seed": config.seed,
        "normalize_obs": env.normalize_obs,
        "normalize_reward": env.normalize_reward,
        "hidden_sizes": list(network.hidden_sizes),
        "activation": network.activation,
        "learning_rate": algo.learning_rate,
        "anneal_learning_rate": algo.anneal_learning_rate,
        "adam_eps": algo.adam_eps,
        "ppo": {
            "n_steps": config.runner.sync_interval,
            "batch_size": num_rows // algo.num_minibatches,
            "n_epochs": algo.update_epochs,
            "gamma": algo.gamma,
            "gae_lambda": algo.gae_lambda,
            "clip_range": algo.clip_coef,
            "clip_range_vf": algo.clip_coef if algo.clip_value_loss else None,
            "normalize_advantage": algo.normalize_advantage,
            "ent_coef": algo.entropy_coef,
            # Here, half the squared error is the loss of the value; there, the squared error.
            "vf_coef": algo.value_coef / 2,
            "max_grad_norm": algo.max_grad_norm,
        },
    }


def train(run_dir: Path, python: str, words: Sequence[str], library: str) -> tuple[float, float]:
    """Trains to the end, if that is not done; returns the last return and env steps per second.

    Args:
        python: interpreter with stable-baselines3.
        words: words of htsrl's command line that set the run.
    """
    own = _train_sb3 if library == "SB3" else _train_htsrl
    return own(run_dir, python, [*words, *LIBRARIES[library]])


def _train_htsrl(run_dir: Path, _: str, words: Sequence[str]) -> tuple[float, float]:
    words = [*words, f"hydra.run.dir={run_dir}", "resume=auto"]
    _run([sys.executable, "-m", "htsrl_cli", "train", *words])
    line = training_lines(run_dir)[-1]
    last = json.loads((run_dir / "summary.json").read_text())["metric"]
    return last, line["env_steps"] / line["time/seconds"]


def _train_sb3(run_dir: Path, python: str, words: Sequence[str]) -> tuple[float, float]:
    result_file = run_dir / "result.json"
    if not result_file.exists():
        settings = json.dumps(sb3_settings(compose(words)))
        printed = _run([python, str(Path(__file__).with_name("peer_sb3_returns.py")), settings])
        run_dir.mkdir(parents=True, exist_ok=True)
        result_file.write_text(printed.splitlines()[-1] + "\n")
    result = json.loads(result_file.read_text())
    return result["last"], result["env_steps"] / result["seconds"]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
    return done.stdout


def published_runs(result: Mapping[str, Any]) -> tuple[list[LastReturn], list[Rate]]:
    """Returns the runs of a result file whose tasks have the same configuration today.

    Rates that were measured on another processor are left out.
    """
    tasks = {name: TASKS[name].words for name in TASKS}
    same = same_configurations(tasks, result.get("tasks", {}))
    runs = [LastReturn(**run) for run in result.get("runs", []) if run["task"] in same]
    measured = [*result.get("measured_earlier", []), *([result["measured"]] if result else [])]
    if any(origin["processor"] != processor() for origin in measured):
        return runs, []
    return runs, [Rate(**rate) for rate in result.get("rates", []) if rate["task"] in same]


def measure_rates(python: str, rounds: Sequence[tuple[str, str]]) -> list[Rate]:
    """Trains for `RATE_STEPS` env steps, one run at a time, in new folders; returns rates.

    Args:
        python: interpreter with stable-baselines3.
        rounds: the task and the library of each run, in order.
    """
    rates = []
    for name, library in rounds:
        words = [*TASKS[name].without_steps, f"total_steps={RATE_STEPS}"]
        with tempfile.TemporaryDirectory() as folder:
            _, rate = train(Path(folder) / "run", python, words, library)
        print(f"  {name:<14} {library:<10} {rate:9.0f} env steps/s", flush=True)
        rates.append(Rate(name, library, rate))
    return rates


def returns_table(runs: Sequence[LastReturn], rates: Sequence[Rate]) -> str:
    """Returns a Markdown table: mean returns with intervals, and median rates, for each task."""
    rows = []
    for name, library in dict.fromkeys((run.task, run.library) for run in runs):
        own = [run.last for run in runs if (run.task, run.library) == (name, library)]
        mean = estimate(np.mean, np.array([own]))
        task = TASKS[name]
        goal = "-" if task.target is None else f"{task.target:g}"
        found = [rate.rate for rate in rates if (rate.task, rate.library) == (name, library)]
        rate = f"{statistics.median(found):,.0f}" if found else "-"
        rows.append(
            (
                *(name, f"{task.total_steps:,}", library, _shown(mean), f"{min(own):.1f}", goal),
                *(str(len(own)), rate),
            )
        )
    heads = ("task", "env steps", "library", "mean return", "lowest", "target", "seeds")
    return table((*heads, "env steps/s"), rows)


def _shown(mean: Estimate) -> str:
    return f"{mean.value:.1f} ({mean.low:.1f} to {mean.high:.1f})"


def main() -> None:
    """Trains with both libraries, prints the table, and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sb3", required=True, help="Python interpreter with stable-baselines3")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument(
        "--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), metavar="LIBRARY"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds per library (default: 5)")
    parser.add_argument(
        "--jobs", type=int, default=num_cores(), help="parallel runs for the returns (all cores)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds of the throughput measurement (default: 2)"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "compare_returns")
    parser.add_argument("--output", type=Path, default=result_path("compare_returns"))
    parser.add_argument(
        "--keep-published", action="store_true", help="add to the runs of the output file"
    )
    args = parser.parse_args()
    exit_on_sigterm()
    earlier = read_result(args.output) if args.keep_published else {}
    runs, rates = published_runs(earlier)
    kept = {(run.task, run.library, run.seed) for run in runs}

    def trained(job: tuple[str, str, int]) -> LastReturn:
        name, library, seed = job
        threads = f"learner.num_threads={max(1, num_cores() // args.jobs)}"
        words = [*TASKS[name].words, threads, f"seed={seed}"]
        run_dir = args.folder / name / library.replace(" ", "_") / f"seed_{seed}"
        run = LastReturn(*job, train(run_dir, args.sb3, words, library)[0])
        print(f"  {name:<14} {library:<10} seed {seed}: {run.last:9.1f}", flush=True)
        return run

    seeds = range(1, args.seeds + 1)
    jobs = [(name, lib, n) for name in args.tasks for n in seeds for lib in args.libraries]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs += pool.map(trained, [job for job in jobs if job not in kept])
    runs.sort(key=lambda run: (list(TASKS).index(run.task), list(LIBRARIES).index(run.library)))
    have = {(rate.task, rate.library) for rate in rates}
    turns = [
        (name, lib) for name in args.tasks for _ in range(args.rounds) for lib in args.libraries
    ]
    rates += measure_rates(args.sb3, [turn for turn in turns if turn not in have])
    print(returns_table(runs, rates))
    names = list(dict.fromkeys(run.task for run in runs))
    report = {
        "tasks": {name: TASKS[name].words for name in names},
        "settings": {name: sb3_settings(compose(TASKS[name].words)) for name in names},
        "runs": [asdict(run) for run in runs],
        "rates": [asdict(rate) for rate in rates],
    }
    write_result(args.output, report, earlier if kept else None)


if __name__ == "__main__":
    main()
