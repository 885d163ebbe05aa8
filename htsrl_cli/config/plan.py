"""Sizes of a run, derived from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.sections import AsyncRunnerConfig, TrainConfig


def num_policies(algo: AlgoConfig, num_players: int) -> int:
    """Returns the number of trained networks: 1, or `num_players` for independent policies."""
    return num_players if algo.policies == "independent" else 1


def env_shares(num_envs: int, num_processes: int) -> list[range]:
    """Returns the indices of each process's environments.

    A share is a range of consecutive indices. The first shares may be larger than the others, but
    by no more than one environment.
    """
    size, num_larger = divmod(num_envs, num_processes)
    bounds = [i * size + min(i, num_larger) for i in range(num_processes + 1)]
    return [range(start, end) for start, end in pairwise(bounds)]


@dataclass(frozen=True)
class RunPlan:
    """Sizes of a run, derived once from its configuration.

    Attributes:
        num_columns: number of columns of the learner's slot (B, the length of its second axis): one
            column for each player of each environment or, with `runner=async`, of each unroll.
        sync_interval: env steps of each environment in a rollout (T, the length of a slot's first
            axis).
        steps_per_rollout: env steps in a rollout, summed over all environments; with
            `runner=async`, env steps that one update learns from.
        num_policies: number of trained policies; column c uses policy c % num_policies.
        rows_per_policy: how many of a slot's rows each policy learns from.
        num_rollouts: number of rollouts in the run.
        num_updates: number of updates in the run. Annealed values, such as the learning rate, fall
            over these updates.
        lag: policy lag, which is i - j: an update starts from version i of the parameters, and
            learns from a rollout that was collected with version j. None if it varies.
    """

    num_columns: int
    sync_interval: int
    steps_per_rollout: int
    num_policies: int
    rows_per_policy: int
    num_rollouts: int
    num_updates: int
    lag: int | None

    @classmethod
    def of(cls, config: TrainConfig) -> RunPlan:
        """Derives the sizes from a configuration."""
        runner = config.runner
        width = config.actors.num_envs
        if isinstance(runner, AsyncRunnerConfig):
            width = runner.unrolls_per_update
        steps = runner.sync_interval * width
        num_rollouts = -(-config.total_steps // steps)
        lag = runner.schedule.lag
        policies = num_policies(config.algo, config.env.num_columns)
        return cls(
            num_columns=width * config.env.num_columns,
            sync_interval=runner.sync_interval,
            steps_per_rollout=steps,
            num_policies=policies,
            rows_per_policy=steps * config.env.num_columns // policies,
            num_rollouts=num_rollouts,
            num_updates=num_rollouts - (lag or 0),
            lag=lag,
        )

    def is_due(self, env_steps: int, period: int) -> bool:
        """Returns True at the first barrier at or after each multiple of `period` env steps.

        Args:
            env_steps: env steps of the run up to this barrier, summed over all environments.
            period: length of the period in env steps, 1 or more.
        """
        return env_steps // period > (env_steps - self.steps_per_rollout) // period
