"""Checks of a training run's configuration: the range of each key, and combinations of keys.

This module imports neither torch nor environments. Whether a GPU or a game exists is checked by the
code that uses it.
"""

from __future__ import annotations

from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.rules import check_rules
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import ConfigError

_SECTIONS = (
    "env",
    "algo",
    "network",
    "actors",
    "learner",
    "runner",
    "checkpoint",
    "log",
    "eval",
)


def check_ranges(config: TrainConfig) -> None:
    """Checks that each key's value is in its range.

    Raises:
        ConfigError: a value is out of range; the first one is reported.
    """
    check_rules("", config, config.rules)
    for name in _SECTIONS:
        section = getattr(config, name)
        check_rules(f"{name}.", section, section.rules)


def check_combinations(config: TrainConfig) -> None:
    """Checks that the values of keys fit together; `check_ranges` must have passed before.

    Raises:
        ConfigError: values do not fit together; the first key that must change is reported.
    """
    config.env.check()
    _check_schedule(config)
    _check_normalization(config)
    _check_workers(config)
    _check_processes(config)
    _check_shards(config)
    _check_sizes(config)
    _check_evaluation(config)


def _check_schedule(config: TrainConfig) -> None:
    """Checks that the algorithm can learn from data whose policy lag varies."""
    if config.algo.needs_one_version and config.runner.schedule.lag is None:
        raise ConfigError(
            "runner.name",
            config.runner.name,
            f"algo={config.algo.name} computes its gradient at the one version of the policy that "
            "collected a rollout: choose algo=impala or ppo, or runner=hts",
        )


def _check_normalization(config: TrainConfig) -> None:
    """Checks that slots hold what running statistics of returns need."""
    if config.env.normalizes_reward and config.runner.schedule.lag is None:
        raise ConfigError(
            "env.normalize_reward",
            "true",
            f"runner={config.runner.name} learns from unrolls of any environments, but the "
            "statistics need the rewards of each environment in order: leave this key out, or "
            "choose runner=hts",
        )


def _check_workers(config: TrainConfig) -> None:
    """Checks the worker counts; does nothing for a runner without workers."""
    actors, schedule = config.actors, config.runner.schedule
    if schedule.inline:
        return
    if actors.num_executors > actors.num_envs:
        remedy = f"must be at most actors.num_envs={actors.num_envs}: each executor needs one"
        raise ConfigError("actors.num_executors", actors.num_executors, remedy)
    if schedule.lockstep and actors.num_actors != 1:
        remedy = f"must be 1 with runner={config.runner.name}"
        raise ConfigError("actors.num_actors", actors.num_actors, remedy)


def _check_processes(config: TrainConfig) -> None:
    """Checks that each environment gets a process of its own if it needs one."""
    actors, runner, reason = config.actors, config.runner, config.env.one_per_process
    if not reason:
        return
    if runner.schedule.inline and actors.num_envs > 1:
        remedy = f"runner={runner.name} allows only 1 {reason}"
        raise ConfigError("actors.num_envs", actors.num_envs, remedy)
    if not runner.schedule.inline and actors.num_executors != actors.num_envs:
        remedy = f"must equal actors.num_envs={actors.num_envs} {reason}"
        raise ConfigError("actors.num_executors", actors.num_executors, remedy)


def _check_shards(config: TrainConfig) -> None:
    """Checks that every shard gets equally many environments."""
    shards, num_envs = config.learner.num_shards, config.actors.num_envs
    if config.runner.schedule.lag is None and shards > 1:
        raise ConfigError(
            "learner.num_shards", shards, f"must be 1 with runner={config.runner.name}"
        )
    if num_envs % shards:
        raise ConfigError("learner.num_shards", shards, f"must divide actors.num_envs={num_envs}")


def _check_sizes(config: TrainConfig) -> None:
    """Checks that the algorithm can use a slot's rows, and that the run makes an update at all."""
    plan = RunPlan.of(config)
    players = " x players" if plan.rows_per_policy > plan.steps_per_rollout else ""
    width = "runner.unrolls_per_update" if plan.lag is None else "actors.num_envs"
    shards = config.learner.num_shards
    of_shards = " / learner.num_shards" if shards > 1 else ""
    number, product = plan.rows_per_policy // shards, f"{width}{players}{of_shards}"
    if config.network.memory == "none":
        config.algo.check(number, f"runner.sync_interval x {product}")
    else:
        config.algo.check(
            number // plan.sync_interval,
            f"{product}, because with network.memory={config.network.memory} a minibatch has whole "
            "rollouts of environments",
        )
    if plan.num_updates < 1:
        raise ConfigError(
            "total_steps",
            config.total_steps,
            f"the first update needs a second rollout, and a rollout has {plan.steps_per_rollout} "
            f"env steps: give more than {plan.steps_per_rollout}, or lower actors.num_envs or "
            "runner.sync_interval",
        )


def _check_evaluation(config: TrainConfig) -> None:
    """Checks that `eval.interval` does not exceed the run's env steps.

    Also checks that `eval.interval` is set if `eval.video_interval` is set.
    """
    plan, interval = RunPlan.of(config), config.eval.interval
    steps = plan.num_rollouts * plan.steps_per_rollout
    if interval > steps:
        remedy = f"the run has {steps} env steps: give {steps} or less, or 0 for no evaluation"
        raise ConfigError("eval.interval", interval, remedy)
    if config.eval.video_interval and not interval:
        remedy = "only evaluated policies are filmed: also set eval.interval, or leave this key out"
        raise ConfigError("eval.video_interval", config.eval.video_interval, remedy)
