"""What asynchronous rollouts gain where step times vary: `hts` against `sync`, and theory.

    python -m scripts.asynchrony --seconds 60 --repeats 3

Sixteen environments that only sleep, one executor each, trained by `htsrl train` in fresh
processes. Part 1: exponential step times, hardly any training; both runners are compared with
what the expected step times predict. Part 2: constant step times, and a learner that is made to
need as long for an interval as its collection takes.

The predictions have one free figure, c: what an env step of one environment costs beyond its step
time (oversleeping, pipes, inference, the barrier's share). It is measured for each runner with
constant step times, where no environment waits for a slower one by chance, as
c = environments / rate - step time: for `hts` with a single environment, since the requests of
independent environments come one by one, for `sync` with all of them, which are served together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import gamma

from htsrl_cli.benchmark import Run, measure
from htsrl_cli.microbenchmarks import OneThread
from scripts.measured_runs import Comparison, compose, median, show, show_medians, write_report

NUM_ENVS = 16
SYNC_INTERVAL = 128
MEAN_S = 0.010
RUNNERS = ("hts", "sync")
EULER_MASCHERONI = 0.5772156649015329
# Micro-batches of a network large enough that its passes, not their overhead, take the time.
LOAD = ("algo=ppo", "algo.hidden_sizes=[256,256]", "algo.num_minibatches=4")
LIGHT = ("algo=a2c",)
# Epochs of the first guess at what takes the learner as long as a rollout.
FIRST_EPOCHS = 16
NUM_CALIBRATIONS = 2


def claim_1_seconds(
    num_states: int, num_envs: int, sync_interval: int, mean_s: float, actor_s: float
) -> float:
    """Expected time to collect `num_states` env steps, meeting every `sync_interval` of them.

    Claim 1 of the HTS-RL paper (arXiv 2012.09849): step times are exponential with mean `mean_s`,
    hence an environment's part of an interval Gamma(sync_interval, 1 / mean_s); the expected
    maximum over environments is that of the Gumbel distribution it tends to.

    Args:
        actor_s: what an env step costs beyond its step time (c).
    """
    slowest_s = gamma.ppf(1 - 1 / num_envs, sync_interval, scale=mean_s)
    spread_s = EULER_MASCHERONI * mean_s * (1 + (sync_interval - 1) * mean_s / slowest_s)
    num_intervals = num_states / (num_envs * sync_interval)
    return float(num_intervals * (spread_s + slowest_s) + num_states * actor_s / num_envs)


def lockstep_seconds(num_states: int, num_envs: int, mean_s: float, step_s: float) -> float:
    """Expected time to collect `num_states` env steps when all wait for each at every one.

    The slowest of n exponential step times takes the n-th harmonic number times their mean.

    Args:
        step_s: what a joint step costs beyond the slowest environment.
    """
    harmonic = sum(1 / k for k in range(1, num_envs + 1))
    return num_states / num_envs * (mean_s * harmonic + step_s)


@dataclass(frozen=True)
class Bench:
    """Starts runs and keeps what they measured.

    Attributes:
        seconds: of a run, its first interval aside.
    """

    seconds: float

    def run(
        self,
        name: str,
        runner: str,
        distribution: str,
        words: Sequence[str],
        num_envs: int = NUM_ENVS,
    ) -> Run:
        """One run of `htsrl train`, printed."""
        words = [
            f"runner={runner}",
            f"runner.sync_interval={SYNC_INTERVAL}",
            "env=synthetic/sleep",
            f"env.distribution={distribution}",
            f"env.mean_ms={1000 * MEAN_S:g}",
            f"actors.num_envs={num_envs}",
            f"actors.num_executors={num_envs}",
            *words,
        ]
        return show(measure(name, words, self.seconds))

    def alternate(self, repeats: int, distribution: str, words: Sequence[str]) -> list[Run]:
        """`hts` and `sync` by turns."""
        turns = [runner for _ in range(repeats) for runner in RUNNERS]
        return [self.run(runner, runner, distribution, words) for runner in turns]


def _learning_over_rollout(run: Run) -> float:
    """Learning time over rollout time of a `sync` run, in which they alternate."""
    return run.times["learner_busy"] / run.times["learner_waiting"]


def measure_step_cost(bench: Bench) -> dict[str, float]:
    """What a step costs beyond its step time (c) with each runner, in seconds."""
    print("What a step costs beyond its step time (c), from constant step times of 10 ms:")
    costs = {}
    for runner, num_envs in (("hts", 1), ("sync", NUM_ENVS)):
        name = f"{runner}, {num_envs} envs"
        run = bench.run(name, runner, "constant", LIGHT, num_envs)
        costs[runner] = num_envs / run.rate - MEAN_S
    _show_parts()
    for runner, cost in costs.items():
        print(f"  c of {runner}: {1000 * cost:.3f} ms")
    return costs


def _show_parts() -> None:
    """Prints the two parts of c that can be timed by themselves."""
    config = compose(["env=synthetic/sleep", f"env.mean_ms={1000 * MEAN_S:g}", *LIGHT])
    batch = config.actors.inference_batch
    rates = OneThread.measure(config, 1.0)
    pass_ms = 1000 * batch / rates.inference
    overshoot_ms = 1000 * (1 / rates.env - MEAN_S)
    print(f"  alone, a forward pass of {batch} rows takes {pass_ms:.3f} ms and")
    print(f"  a sleep of {1000 * MEAN_S:g} ms takes {overshoot_ms:.3f} ms longer than that")


def varying_step_times(
    bench: Bench, repeats: int, costs: dict[str, float]
) -> tuple[list[Run], list[Comparison]]:
    """Part 1."""
    print("Part 1: exponential step times of mean 10 ms")
    runs = bench.alternate(repeats, "exponential", LIGHT)
    show_medians(runs)
    predicted = {
        "hts": 1 / claim_1_seconds(1, NUM_ENVS, SYNC_INTERVAL, MEAN_S, costs["hts"]),
        "sync": 1 / lockstep_seconds(1, NUM_ENVS, MEAN_S, costs["sync"]),
    }
    for runner, rate in predicted.items():
        print(f"  predicted for {runner}: {rate:.1f} env steps/s")
    reached = {runner: median(runs, runner) for runner in RUNNERS}
    comparisons = [
        Comparison("hts / sync", reached["hts"] / reached["sync"], 2.6),
        Comparison("hts / prediction (Claim 1)", reached["hts"] / predicted["hts"], 0.9, 1.1),
        Comparison("sync / prediction", reached["sync"] / predicted["sync"], 0.9, 1.1),
    ]
    return runs, comparisons


def equal_training_cost(
    bench: Bench, calibration: Bench, repeats: int, learner_threads: int
) -> tuple[list[Run], list[Comparison], dict[str, object]]:
    """Part 2."""
    print(f"Part 2: constant step times, training as long as the rollout ({learner_threads=})")
    load = [*LOAD, f"learner.num_threads={learner_threads}"]
    epochs = FIRST_EPOCHS
    for _ in range(NUM_CALIBRATIONS):
        words = [*load, f"algo.update_epochs={epochs}"]
        share = _learning_over_rollout(calibration.run("calibration", "sync", "constant", words))
        print(f"  {epochs} epochs take {share:.3f} of the rollout's time")
        epochs = max(1, round(epochs / share))
    print(f"  {epochs} epochs from here on")
    words = [*load, f"algo.update_epochs={epochs}"]
    runs = bench.alternate(repeats, "constant", words)
    show_medians(runs)
    shares = [_learning_over_rollout(run) for run in runs if run.name == "sync"]
    print(f"  learning time / rollout time in the sync runs: {[round(s, 3) for s in shares]}")
    ratio = median(runs, "hts") / median(runs, "sync")
    figures = {"update_epochs": epochs, "learning_over_rollout": shares}
    return runs, [Comparison("hts / sync, equal cost", ratio, 1.6)], figures


def main() -> int:
    """Runs both parts; the exit code is 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of a run (default: 60)")
    parser.add_argument(
        "--calibration-seconds", type=float, default=20.0, help="of a calibration (default: 20)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument(
        "--learner-threads", type=int, default=1, help="in part 2 (default: 1, a core of its own)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/asynchrony.json"), help="JSON")
    args = parser.parse_args()
    bench, calibration = Bench(args.seconds), Bench(args.calibration_seconds)
    costs = measure_step_cost(calibration)
    varying, comparisons = varying_step_times(bench, args.repeats, costs)
    equal, more, figures = equal_training_cost(
        bench, calibration, args.repeats, args.learner_threads
    )
    comparisons += more
    print("Targets")
    for comparison in comparisons:
        comparison.show()
    figures |= {"step_cost_s": costs, "num_runs_of_part_1": len(varying)}
    write_report(args.output, [*varying, *equal], comparisons, figures)
    return 0 if all(comparison.holds for comparison in comparisons) else 1


if __name__ == "__main__":
    raise SystemExit(main())
