"""Conversion of plain values, from Hydra or from a checkpoint, into validated configurations.

plain values → typed sections → ranges checked → `auto` filled in → combinations checked
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from htsrl_cli.config.auto import fill, hold_places
from htsrl_cli.config.checks import check_combinations, check_ranges
from htsrl_cli.config.plain import build
from htsrl_cli.config.rules import check_rules
from htsrl_cli.config.sections import BenchConfig, EvalConfig, TrainConfig


def load_train_config(plain: Mapping[str, Any]) -> TrainConfig:
    """Returns the validated configuration of a training run.

    Raises:
        ConfigError: a key or value is invalid; the first one is reported.
    """
    held, automatic = hold_places(plain)
    config = build(TrainConfig, held)
    check_ranges(config)
    config = fill(config, automatic)
    check_combinations(config)
    return config


def load_alone(plain: Mapping[str, Any]) -> TrainConfig:
    """Returns the configuration of a training run whose keys are valid, but may not fit together.

    Keys set to `auto` have arbitrary values.

    Raises:
        ConfigError: a key or value is invalid; the first one is reported.
    """
    config = build(TrainConfig, hold_places(plain)[0])
    check_ranges(config)
    return config


def load_eval_config(plain: Mapping[str, Any]) -> EvalConfig:
    """Returns the validated configuration of `htsrl eval`.

    Raises:
        ConfigError: a key or value is invalid; the first one is reported.
    """
    config = build(EvalConfig, plain)
    check_rules("", config, config.rules)
    return config


def load_bench_config(plain: Mapping[str, Any]) -> BenchConfig:
    """Returns the validated section `bench` of `htsrl bench`.

    Raises:
        ConfigError: a key or value is invalid; the first one is reported.
    """
    config = build(BenchConfig, plain, "bench.")
    check_rules("bench.", config, config.rules)
    return config
