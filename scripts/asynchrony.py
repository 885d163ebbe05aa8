"""Throughput of asynchronous rollouts: the runner `hts` compared with `sync` and with theory.

    python -m scripts.asynchrony --seconds 60 --repeats 3

Each run is `htsrl train` in a fresh process, on sixteen environments that only sleep. Every
environment has its own executor. Part 1 has exponential step times and hardly any training; it
compares both runners with the rates that theory predicts. In parts 2 and 3, an update takes as long
as `hts` needs to collect a rollout. Step times are constant in part 2 and exponential in part 3.
Part 4 measures `hts` with 16 and with 64 environments.

The predictions have one free parameter, c: the cost of an env step of one environment beyond its
step time (late wake-ups, pipes, inference, a share of the barrier). For each runner, c is measured
with constant step times, so that no environment waits for a slower environment:
c = environments / rate - step time. `hts` is measured with a single environment, because the
requests of independent environments arrive one by one. `sync` is measured with all environments,
because their requests are served together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import gamma

from htsrl_cli.bench.measured_run import MeasuredRun, measure
from htsrl_cli.bench.microbenchmarks import OneThread
from scripts.measured_runs import Comparison, compose, median, show, show_medians, write_runs
from scripts.provenance import result_path

NUM_ENVS = 16
SYNC_INTERVAL = 128
MEAN_S = 0.010
RUNNERS = ("hts", "sync")
EULER_MASCHERONI = 0.5772156649015329
# The network and minibatches are large enough that computation outweighs its overhead.
LOAD = ("algo=ppo", "network.hidden_sizes=[256,256]", "algo.num_minibatches=4")
LIGHT = ("algo=a2c",)
# First guess of the number of epochs with which an update takes as long as a rollout.
FIRST_EPOCHS = 16
NUM_CALIBRATIONS = 2
# Factor by which part 4 increases the number of environments.
MORE = 4


def claim_1_seconds(
    num_states: int,
    num_envs: int,
    sync_interval: int,
    mean_s: float,
    actor_s: float,
    shape: float = 1.0,
) -> float:
    """Returns the expected seconds until all environments together take `num_states` env steps.

    This is Claim 1 of the HTS-RL paper (arXiv 2012.09849). Step times follow a gamma distribution.
    The total time of `sync_interval` env steps then also follows a gamma distribution, whose shape
    is `sync_interval` times as large. The expected maximum over environments is taken from the
    limiting Gumbel distribution.

    Args:
        sync_interval: env steps of each environment between two barriers.
        mean_s: mean step time in seconds.
        actor_s: cost of an env step beyond its step time, in seconds (c in the module's docstring).
        shape: shape of the distribution of step times; 1 is exponential.
    """
    scale_s, total_shape = mean_s / shape, sync_interval * shape
    slowest_s = gamma.ppf(1 - 1 / num_envs, total_shape, scale=scale_s)
    spread_s = EULER_MASCHERONI * scale_s * (1 + (total_shape - 1) * scale_s / slowest_s)
    num_rollouts = num_states / (num_envs * sync_interval)
    return float(num_rollouts * (spread_s + slowest_s) + num_states * actor_s / num_envs)


def lockstep_seconds(num_states: int, num_envs: int, mean_s: float, step_s: float) -> float:
    """Returns the expected seconds until all environments together take `num_states` env steps.

    In lockstep, all environments wait for the slowest one at every env step. The expected maximum
    of n exponential step times is the n-th harmonic number times their mean.

    Args:
        mean_s: mean step time in seconds.
        step_s: cost of a joint step beyond the slowest step time, in seconds.
    """
    harmonic = sum(1 / k for k in range(1, num_envs + 1))
    return num_states / num_envs * (mean_s * harmonic + step_s)


@dataclass(frozen=True)
class Bench:
    """Settings of measured runs.

    Attributes:
        seconds: minimum duration of a run, counted from its first line of metrics.
    """

    seconds: float

    def run(
        self,
        name: str,
        runner: str,
        distribution: str,
        words: Sequence[str],
        num_envs: int = NUM_ENVS,
    ) -> MeasuredRun:
        """Measures a run with the overrides `words`; prints and returns its figures."""
        words = [
            f"runner={runner}",
            f"runner.sync_interval={SYNC_INTERVAL}",
            "env=synthetic/sleep",
            f"env.distribution={distribution}",
            f"env.mean_ms={1000 * MEAN_S:g}",
            f"actors.num_envs={num_envs}",
            f"actors.num_executors={num_envs}",
            "log.interval=1",
            *words,
        ]
        return show(measure(name, words, self.seconds))

    def alternate(self, repeats: int, distribution: str, words: Sequence[str]) -> list[MeasuredRun]:
        """Measures `hts` and `sync` in turn, `repeats` times each."""
        turns = [runner for _ in range(repeats) for runner in RUNNERS]
        return [self.run(runner, runner, distribution, words) for runner in turns]


def measure_step_cost(bench: Bench) -> dict[str, float]:
    """Measures c, the cost of an env step beyond its step time; returns each runner's seconds."""
    print("Cost of an env step beyond its step time (c), measured with steps of 10 ms:")
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
    """Measures and prints two parts of c: the time of a forward pass, and how late a sleep ends."""
    config = compose(["env=synthetic/sleep", f"env.mean_ms={1000 * MEAN_S:g}", *LIGHT])
    batch = config.actors.inference_batch
    rates = OneThread.measure(config, 1.0)
    pass_ms = 1000 * batch / rates.inference
    overshoot_ms = 1000 * (1 / rates.env - MEAN_S)
    print(f"  measured separately: a forward pass of {batch} rows takes {pass_ms:.3f} ms,")
    print(f"  and a sleep of {1000 * MEAN_S:g} ms takes {overshoot_ms:.3f} ms too long")


def varying_step_times(
    bench: Bench, repeats: int, costs: dict[str, float]
) -> tuple[list[MeasuredRun], list[Comparison]]:
    """Measures part 1; returns the runs and their comparisons with each other and with theory."""
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
        Comparison("hts / sync", reached["hts"] / reached["sync"], 2.7),
        Comparison("hts / prediction (Claim 1)", reached["hts"] / predicted["hts"], 0.9, 1.1),
        Comparison("sync / prediction", reached["sync"] / predicted["sync"], 0.9, 1.1),
    ]
    return runs, comparisons


def equal_training_cost(
    bench: Bench, calibration: Bench, repeats: int, words: Sequence[str], distribution: str
) -> tuple[list[MeasuredRun], float]:
    """Measures part 2 or 3, in which an update takes as long as an asynchronous rollout.

    Returns:
        The runs, and the median rate of `hts` divided by the median rate of `sync`.
    """
    print(f"{distribution} step times; an update takes as long as a rollout of hts; {list(words)}")
    rollout_s = _interval_s(calibration.run("rollout", "hts", distribution, LIGHT))
    epochs = FIRST_EPOCHS
    for _ in range(NUM_CALIBRATIONS):
        load = [*words, f"algo.update_epochs={epochs}"]
        run = calibration.run("calibration", "sync", distribution, load)
        share = run.times["learner_busy"] * _interval_s(run) / rollout_s
        print(f"  {epochs} epochs take {share:.3f} of the hts rollout's time")
        epochs = max(1, round(epochs / share))
    print(f"  the runs below train for {epochs} epochs")
    runs = bench.alternate(repeats, distribution, [*words, f"algo.update_epochs={epochs}"])
    show_medians(runs)
    for run in runs:
        if run.name == "sync":
            share = run.times["learner_busy"] * _interval_s(run) / rollout_s
            print(f"  in a sync run, an update took {share:.3f} of the hts rollout's time")
    return runs, median(runs, "hts") / median(runs, "sync")


def _interval_s(run: MeasuredRun) -> float:
    """Returns the mean seconds from the end of a rollout to the end of the next one.

    With `sync`, they include an update. The run must have `NUM_ENVS` environments.
    """
    return NUM_ENVS * SYNC_INTERVAL / run.rate


def more_environments(bench: Bench, repeats: int) -> tuple[list[MeasuredRun], float]:
    """Measures part 4; returns the runs and the speedup with `MORE` times as many environments."""
    print(f"Part 4: {MORE * NUM_ENVS} environments, exponential step times")
    turns = [factor for _ in range(repeats) for factor in (1, MORE)]
    runs = [
        bench.run(f"{factor * NUM_ENVS} envs", "hts", "exponential", LIGHT, factor * NUM_ENVS)
        for factor in turns
    ]
    show_medians(runs)
    return runs, median(runs, f"{MORE * NUM_ENVS} envs") / median(runs, f"{NUM_ENVS} envs")


def main() -> int:
    """Runs all parts and writes the results; returns 1 if a target is missed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds per run (default: 60)")
    parser.add_argument(
        "--calibration-seconds",
        type=float,
        default=20.0,
        help="seconds per calibration run (default: 20)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument(
        "--learner-threads",
        type=int,
        default=1,
        help="learner threads in parts 2 and 3 (default: 1)",
    )
    parser.add_argument("--output", type=Path, default=result_path("asynchrony"), help="JSON file")
    args = parser.parse_args()
    bench, calibration = Bench(args.seconds), Bench(args.calibration_seconds)
    load = [*LOAD, f"learner.num_threads={args.learner_threads}"]
    costs = measure_step_cost(calibration)
    runs, comparisons = varying_step_times(bench, args.repeats, costs)
    for distribution, target in (("constant", 1.6), ("exponential", 3.4)):
        more, ratio = equal_training_cost(bench, calibration, args.repeats, load, distribution)
        runs += more
        comparisons.append(Comparison(f"hts / sync, equal cost, {distribution}", ratio, target))
    more, ratio = more_environments(bench, args.repeats)
    runs += more
    comparisons.append(Comparison(f"{MORE * NUM_ENVS} / {NUM_ENVS} environments", ratio, 3.6))
    print("Targets")
    for comparison in comparisons:
        comparison.show()
    write_runs(args.output, runs, comparisons, {"step_cost_s": costs})
    return 0 if all(comparison.holds for comparison in comparisons) else 1


if __name__ == "__main__":
    raise SystemExit(main())
