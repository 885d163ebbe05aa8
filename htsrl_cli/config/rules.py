"""Ranges and combinations: what a configuration must keep to beyond its types.

Nothing here imports torch or an environment; whether a GPU or a game exists is found out by
whoever needs it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from htsrl_cli.config.plain import did_you_mean, shown
from htsrl_cli.config.sections import (
    FOOTBALL_SCENARIOS,
    BenchConfig,
    EnvConfig,
    EvalConfig,
    FootballConfig,
    PpoConfig,
    RunPlan,
    TrainConfig,
)
from htsrl_cli.errors import ConfigError

# Seeds key a 64-bit counter-based generator.
_SEEDS = 2**63
# The convolutions (8/4, 4/2, 3/1) leave nothing of a smaller image.
_SMALLEST_SCREEN = 36


@dataclass(frozen=True)
class Rule:
    """`holds(value)` must be true; `remedy` says what a value must be."""

    holds: Callable[[Any], bool]
    remedy: str


def _between(low: float, high: float) -> Rule:
    return Rule(lambda value: low <= value <= high, f"must be between {low} and {high}")


def _one_of(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"must be one of {', '.join(names)}")


POSITIVE = Rule(lambda value: 0 < value < math.inf, "must be finite and greater than 0")
NOT_NEGATIVE = Rule(lambda value: 0 <= value < math.inf, "must be finite and not negative")
COUNT = Rule(lambda value: 1 <= value < _SEEDS, "must be 1 or more")
INDEX = Rule(lambda value: 0 <= value < _SEEDS, "must be 0 or more")
SEED = Rule(lambda value: 0 <= value < _SEEDS, "must be between 0 and 2**63 - 1")
FRACTION = _between(0.0, 1.0)
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
OPTIONAL_COUNT = Rule(lambda value: value is None or value >= 1, "must be null, or 1 or more")
NOT_EMPTY = Rule(bool, "must not be empty")
SIZES = Rule(
    lambda sizes: bool(sizes) and min(sizes) >= 1, "must be a list of one or more positive sizes"
)
DEVICE = Rule(
    lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
    "must be auto, cpu or cuda:N",
)
TARGETS = Rule(lambda scores: all(map(math.isfinite, scores)), "must be a list of finite scores")
PRECISION = _one_of("fp32", "bf16")
RUNNERS = Rule(
    lambda names: bool(names) and set(names) <= {"hts", "sync", "serial"},
    "must be a list of hts, sync and serial",
)
GAME = Rule(
    lambda value: re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", value) is not None,
    "must be a game's name in snake case, such as space_invaders",
)
SCREEN = Rule(lambda value: value >= _SMALLEST_SCREEN, f"must be {_SMALLEST_SCREEN} or more")

_ATARI = {
    "game": GAME,
    "frame_skip": COUNT,
    "screen_size": SCREEN,
    "frame_stack": COUNT,
    "noop_max": INDEX,
    "repeat_action_probability": BELOW_ONE,
    "max_num_frames_per_episode": COUNT,
    "step_timeout_s": POSITIVE,
}
_GYM = {"id": NOT_EMPTY, "max_episode_steps": OPTIONAL_COUNT, "step_timeout_s": POSITIVE}
_SYNTHETIC = {
    "name": _one_of("sleep", "count", "faulty"),
    "distribution": _one_of("constant", "exponential", "gamma"),
    "mean_ms": NOT_NEGATIVE,
    "shape": POSITIVE,
    "episode_length": COUNT,
    "fault": _one_of("raise", "crash", "exit", "hang"),
    "fault_env": INDEX,
    "num_players": COUNT,
    "step_timeout_s": POSITIVE,
}
_FOOTBALL = {
    "scenario": _one_of(*FOOTBALL_SCENARIOS),
    "representation": _one_of("extracted", "simple115v2", "pixels_gray", "pixels"),
    "frame_stack": COUNT,
    "rewards": _one_of("scoring", "scoring,checkpoints"),
    "num_left_players": INDEX,
    "num_right_players": INDEX,
    "step_timeout_s": POSITIVE,
}
_ALGO = {
    "learning_rate": POSITIVE,
    "gamma": FRACTION,
    "entropy_coef": NOT_NEGATIVE,
    "value_coef": NOT_NEGATIVE,
    "max_grad_norm": POSITIVE,
    "hidden_sizes": SIZES,
    "policies": _one_of("shared", "independent"),
}
_PPO = _ALGO | {
    "gae_lambda": FRACTION,
    "clip_coef": POSITIVE,
    "update_epochs": COUNT,
    "num_minibatches": COUNT,
    "adam_eps": POSITIVE,
}
_A2C = _ALGO | {"rmsprop_alpha": BELOW_ONE, "rmsprop_eps": POSITIVE}
_SECTIONS = {
    "actors": {
        "num_envs": COUNT,
        "num_executors": COUNT,
        "num_actors": COUNT,
        "inference_batch": COUNT,
        "device": DEVICE,
        "precision": PRECISION,
        "host": _one_of("process", "thread", "auto"),
        "timeout_s": POSITIVE,
    },
    "learner": {
        "device": DEVICE,
        "precision": PRECISION,
        "num_threads": COUNT,
        "micro_batch": COUNT,
    },
    "runner": {
        "name": _one_of("hts", "serial", "sync"),
        "sync_interval": COUNT,
        "stop_grace_s": NOT_NEGATIVE,
    },
    "checkpoint": {"interval": COUNT, "keep": COUNT},
    "log": {"interval": COUNT},
    "eval": {
        "interval": INDEX,
        "episodes": COUNT,
        "video_interval": INDEX,
        "targets": TARGETS,
    },
}
_VARIANTS = {
    "atari": _ATARI,
    "gym": _GYM,
    "synthetic": _SYNTHETIC,
    "football": _FOOTBALL,
    "ppo": _PPO,
    "a2c": _A2C,
}


def validate(config: TrainConfig) -> None:
    """Checks ranges, then combinations.

    Raises:
        ConfigError: for the first key that has to change.
    """
    _check("", config, {"seed": SEED, "total_steps": COUNT})
    _check("env.", config.env, _VARIANTS[config.env.kind])
    _check("algo.", config.algo, _VARIANTS[config.algo.name])
    for name, rules in _SECTIONS.items():
        _check(f"{name}.", getattr(config, name), rules)
    _check_players(config)
    _check_workers(config)
    _check_renderers(config)
    _check_sizes(config)
    _check_evaluation(config)


def validate_eval(config: EvalConfig) -> None:
    """Checks the ranges of `htsrl eval`'s keys.

    Raises:
        ConfigError: for the first key that has to change.
    """
    _check("", config, {"checkpoint": NOT_EMPTY, "episodes": COUNT, "seed": SEED})


def check_renderer(renderer: str, env: EnvConfig) -> None:
    """Checks that an environment can be pictured in this way.

    Raises:
        ConfigError: it cannot.
    """
    if not env.renderers:
        remedy = f"env.kind={env.kind} has no picture: leave the key out"
        raise ConfigError("renderer", renderer, remedy)
    if renderer not in env.renderers:
        remedy = f"must be one of {', '.join(env.renderers)}, which env.kind={env.kind} has"
        raise ConfigError("renderer", renderer, remedy + did_you_mean(renderer, env.renderers))


def validate_bench(config: BenchConfig) -> None:
    """Checks the ranges of `htsrl bench`'s own keys.

    Raises:
        ConfigError: for the first key that has to change.
    """
    rules = {
        "runners": RUNNERS,
        "repeats": COUNT,
        "seconds": POSITIVE,
        "micro_seconds": POSITIVE,
    }
    _check("bench.", config, rules)


def _check(prefix: str, section: object, rules: dict[str, Rule]) -> None:
    for field, rule in rules.items():
        value = getattr(section, field)
        if not rule.holds(value):
            known = rule.remedy.removeprefix("must be one of ").split(", ")
            hint = did_you_mean(value, known) if isinstance(value, str) else ""
            raise ConfigError(f"{prefix}{field}", shown(value), rule.remedy + hint)


def _check_players(config: TrainConfig) -> None:
    """Somebody plays, and only the left side sees rendered images."""
    env = config.env
    if not isinstance(env, FootballConfig):
        return
    if env.num_players == 0:
        raise ConfigError("env.num_left_players", 0, "no player is controlled: give 1 or more")
    if env.representation.startswith("pixels") and env.num_right_players:
        raise ConfigError(
            "env.num_right_players",
            env.num_right_players,
            f"must be 0 with env.representation={env.representation}: only the left side's view is "
            "rendered",
        )


def _check_workers(config: TrainConfig) -> None:
    """Worker counts; `serial` has no workers and ignores them."""
    actors = config.actors
    if config.runner.name == "serial":
        return
    if actors.num_envs % actors.num_executors:
        fitting = max(n for n in range(1, actors.num_executors) if actors.num_envs % n == 0)
        raise ConfigError(
            "actors.num_executors",
            actors.num_executors,
            f"must divide actors.num_envs={actors.num_envs}, as {fitting} does",
        )
    if config.runner.name == "sync" and actors.num_actors != 1:
        raise ConfigError(
            "actors.num_actors", actors.num_actors, "must be 1 with runner=sync, the baseline"
        )


def _check_renderers(config: TrainConfig) -> None:
    """Of a process's engines only one can render."""
    env, actors = config.env, config.actors
    if not isinstance(env, FootballConfig) or not env.is_rendered:
        return
    remedy = f"with env.representation={env.representation}: a process can render one environment"
    if config.runner.name == "serial" and actors.num_envs > 1:
        raise ConfigError(
            "actors.num_envs", actors.num_envs, f"must be 1 with runner=serial {remedy}"
        )
    if config.runner.name != "serial" and actors.num_executors != actors.num_envs:
        remedy = f"must be {actors.num_envs}, as actors.num_envs, {remedy}"
        raise ConfigError("actors.num_executors", actors.num_executors, remedy)


def _check_sizes(config: TrainConfig) -> None:
    """A slot is cut into equal minibatches, and a run makes at least one update."""
    plan = RunPlan.of(config)
    rows = plan.sync_interval * plan.num_columns // plan.num_policies
    if isinstance(config.algo, PpoConfig) and rows % config.algo.num_minibatches:
        columns_per_policy = plan.num_columns // plan.num_policies
        players = " x players" if columns_per_policy > config.actors.num_envs else ""
        raise ConfigError(
            "algo.num_minibatches",
            config.algo.num_minibatches,
            f"must divide runner.sync_interval x actors.num_envs{players} = {rows}",
        )
    if plan.num_updates < 1:
        raise ConfigError(
            "total_steps",
            config.total_steps,
            f"an interval has {plan.steps_per_interval} env steps and the first update comes after "
            f"the second: give more than {plan.steps_per_interval}, or lower runner.sync_interval "
            "or actors.num_envs",
        )


def _check_evaluation(config: TrainConfig) -> None:
    """A run that evaluates its policies evaluates one, and films those that are evaluated."""
    plan, interval = RunPlan.of(config), config.eval.interval
    steps = plan.num_intervals * plan.steps_per_interval
    if interval > steps:
        remedy = f"the run has {steps} env steps: give {steps} or less, or 0 to evaluate none"
        raise ConfigError("eval.interval", interval, remedy)
    if config.eval.video_interval and not interval:
        remedy = "films policies that are evaluated: give eval.interval, too"
        raise ConfigError("eval.video_interval", config.eval.video_interval, remedy)
