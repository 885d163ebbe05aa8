"""Loads configurations: makes plain values, composed or stored, ready for use, in one direction.

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
    """Returns the configuration of a training run.

    Raises:
        ConfigError: for the first key that has to change.
    """
    held, automatic = hold_places(plain)
    config = build(TrainConfig, held)
    check_ranges(config)
    config = fill(config, automatic)
    check_combinations(config)
    return config


def load_eval_config(plain: Mapping[str, Any]) -> EvalConfig:
    """Returns the configuration of `htsrl eval`.

    Raises:
        ConfigError: for the first key that has to change.
    """
    config = build(EvalConfig, plain)
    check_rules("", config, config.rules)
    return config


def load_bench_config(plain: Mapping[str, Any]) -> BenchConfig:
    """Returns the section `bench` of `htsrl bench`.

    Raises:
        ConfigError: for the first key that has to change.
    """
    config = build(BenchConfig, plain, "bench.")
    check_rules("bench.", config, config.rules)
    return config
