"""Comparison of htsrl and Stable-Baselines3: returns and throughput with the same hyperparameters.

    python -m scripts.compare_returns --sb3 SB3_VENV/bin/python --tasks Pendulum --seeds 5

Both libraries train on one task after the other, with one seed after the other, by turns and one
run at a time. The hyperparameters are the tuned settings of htsrl. Start the same command again to
go on after an interruption: complete runs are not repeated. The virtual environment needs
stable-baselines3, and Gymnasium's extras `box2d` and `mujoco` for some tasks, as htsrl does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.networks.mlp.config import MlpConfig
from htsrl_cli.tracking.lines import training_lines
from scripts.interruption import exit_on_sigterm
from scripts.learning_statistics import Estimate, estimate
from scripts.measured_runs import compose
from scripts.provenance import ROOT, result_path, write_result
from scripts.reference.markdown import table


@dataclass(frozen=True)
class Task:
    """A task of the comparison.

    Attributes:
        env_id: Gymnasium's id.
        total_steps: env steps of a run.
        target: mean return of the last 100 episodes that a run should reach; None for none.
    """

    env_id: str
    total_steps: int
    target: float | None = None

    @property
    def words(self) -> list[str]:
        """The words of the command line that set the task."""
        return ["env=gym", f"env.id={self.env_id}", "algo=ppo", f"total_steps={self.total_steps}"]


TASKS = {
    "Pendulum": Task("Pendulum-v1", 200_000, -250.0),
    "LunarLander": Task("LunarLander-v3", 1_000_000, 200.0),
    "BipedalWalker": Task("BipedalWalker-v3", 2_000_000),
    "Hopper": Task("Hopper-v5", 1_000_000),
    "HalfCheetah": Task("HalfCheetah-v5", 1_000_000),
}
LIBRARIES = ("htsrl", "SB3")


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Attributes:
        last: mean raw return of the last 100 episodes.
        rate: env steps per second, without the start of the run.
    """

    task: str
    library: str
    seed: int
    last: float
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


def train(folder: Path, python: str, name: str, library: str, seed: int) -> Trained:
    """Trains to the end, if that is not done; prints and returns the result."""
    run_dir = folder / name / library / f"seed_{seed}"
    words = [*TASKS[name].words, f"seed={seed}", "log.tensorboard=false"]
    own = _train_htsrl(run_dir, words) if library == "htsrl" else _train_sb3(run_dir, python, words)
    run = Trained(name, library, seed, *own)
    print(
        f"  {name:<14} {library:<6} seed {seed}: {run.last:9.1f} {run.rate:9.0f} env steps/s",
        flush=True,
    )
    return run


def _train_htsrl(run_dir: Path, words: Sequence[str]) -> tuple[float, float]:
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


def returns_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table: mean returns with intervals, and rates, for each task."""
    rows = []
    for name, library in dict.fromkeys((run["task"], run["library"]) for run in runs):
        own = [run for run in runs if (run["task"], run["library"]) == (name, library)]
        mean = estimate(np.mean, np.array([[run["last"] for run in own]]))
        target = TASKS[name].target
        rate = statistics.median(run["rate"] for run in own)
        lowest = min(run["last"] for run in own)
        goal = "-" if target is None else f"{target:g}"
        steps = f"{TASKS[name].total_steps:,}"
        rows.append(
            (name, steps, library, _shown(mean), f"{lowest:.1f}", goal, f"{rate:,.0f}", len(own))
        )
    heads = ("task", "env steps", "library", "mean return", "lowest", "target", "env steps/s")
    return table((*heads, "seeds"), [tuple(map(str, row)) for row in rows])


def _shown(mean: Estimate) -> str:
    return f"{mean.value:.1f} ({mean.low:.1f} to {mean.high:.1f})"


def main() -> None:
    """Trains with both libraries, prints the table, and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sb3", required=True, help="Python interpreter with stable-baselines3")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=5, help="seeds per library (default: 5)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "compare_returns")
    parser.add_argument("--output", type=Path, default=result_path("compare_returns"))
    args = parser.parse_args()
    exit_on_sigterm()
    runs = [
        asdict(train(args.folder, args.sb3, name, library, seed))
        for name in args.tasks
        for seed in range(1, args.seeds + 1)
        for library in LIBRARIES
    ]
    print(returns_table(runs))
    settings = {name: sb3_settings(compose(TASKS[name].words)) for name in args.tasks}
    write_result(args.output, {"settings": settings, "runs": runs})


if __name__ == "__main__":
    main()
