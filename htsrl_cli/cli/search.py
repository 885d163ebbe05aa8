"""Checks of a search space: its functions, the ends of its intervals, and the values of its keys.

Optuna reports some of these mistakes only when the sweep has begun. Of others, it says nothing, and
trials fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from omegaconf import DictConfig, OmegaConf

from htsrl_cli.config.load import load_alone
from htsrl_cli.config.plain import flatten, nest
from htsrl_cli.config.rules import COUNT, FRACTION, Rule, one_of
from htsrl_cli.config.wording import did_you_mean, shown
from htsrl_cli.errors import ConfigError

_OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
_SETTINGS: Mapping[str, Rule] = {
    "n_trials": COUNT,
    "n_jobs": COUNT,
    "max_failure_rate": FRACTION,
    "direction": one_of("minimize", "maximize"),
}
_TAGS = ("log",)
# A number between 0 and 1 that divides an interval at a place that is not a round number.
_INSIDE = 0.3819
# A step of a decimal range fits if this fraction of it is missing.
_ROUNDING = 1e-8


def words(sweeper: DictConfig) -> list[str]:
    """Returns the search space that YAML files or the command line give to the sweeper's own keys.

    Args:
        sweeper: the section `hydra.sweeper`; `params` wins over the older `search_space`.

    Returns:
        overrides of htsrl's keys.

    Raises:
        ConfigError: an entry is no search space.
    """
    if params := sweeper.get("params"):
        for key, value in params.items():
            if isinstance(value, DictConfig):
                remedy = f"write the name of each key in full, as in {key}.KEY: interval(A, B)"
                raise ConfigError(f"hydra.sweeper.params.{key}", shown(value), remedy)
        return [f"{key}={value}" for key, value in params.items()]
    space = OmegaConf.to_container(sweeper.get("search_space") or OmegaConf.create({}))
    assert isinstance(space, dict)
    return [f"{key!s}={_as_sweep(str(key), entry)}" for key, entry in space.items()]


def check_settings(sweeper: DictConfig) -> None:
    """Checks the numbers and names in the section `hydra.sweeper` of Optuna.

    Raises:
        ConfigError: a value is invalid; the first one is reported.
    """
    if not is_optuna(sweeper):
        return
    for name, rule in _SETTINGS.items():
        value = sweeper.get(name)
        is_valid = isinstance(value, str) == bool(rule.choices) and rule.holds(value)
        if not is_valid:
            hint = did_you_mean(str(value), rule.choices)
            raise ConfigError(f"hydra.sweeper.{name}", shown(value), rule.remedy + hint)


def is_optuna(sweeper: DictConfig) -> bool:
    """Returns True if the section `hydra.sweeper` chooses Optuna."""
    return bool(sweeper.get("_target_") == _OPTUNA)


def check_sweep(override: Override) -> None:
    """Checks the form of a sweep: its ends, its step and its tags.

    Raises:
        ConfigError: the sweep holds no value, or values other than those that it seems to hold.
    """
    sweep = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    for tag in sorted(tags - set(_TAGS)):
        raise _problem(override, f"there is no tag {tag}{did_you_mean(tag, _TAGS) or ' (log)'}")
    if tags and not isinstance(sweep, IntervalSweep):
        raise _problem(override, "log works only with interval(): leave tag() out")
    if isinstance(sweep, IntervalSweep):
        _check_interval(override, sweep.start, sweep.end, bool(tags))
    elif isinstance(sweep, RangeSweep):
        _check_range(override, sweep.start, sweep.stop, sweep.step)


def check_list(override: Override) -> None:
    """Checks that a sweep of Hydra's basic sweeper holds a value.

    Raises:
        ConfigError: it holds none, or it is an interval.
    """
    if not override.is_discrete_sweep():
        raise _problem(
            override, "interval() works only with sweeper=optuna: list values, or use range()"
        )
    try:
        is_empty = not any(True for _ in override.sweep_string_iterator())
    except ValueError as error:
        raise _problem(override, str(error)) from error
    if is_empty:
        raise _problem(override, "holds no value")


def check_values(sweeps: Iterable[Override], plain: Mapping[str, Any]) -> None:
    """Checks that keys accept the values of their sweeps: the ends, one between, or all choices.

    A key's value is checked alone, because only some of its values may fit those of other keys.

    Args:
        sweeps: overrides of keys that are searched.
        plain: values of all keys of a training run.

    Raises:
        ConfigError: a key does not accept a value.
    """
    values = dict(flatten(plain))
    for override in sweeps:
        key, sweep = override.key_or_group, override.value()
        for value in _examples(override):
            try:
                load_alone(nest(values | {key: value}))
            except ConfigError as error:
                if error.key != key:
                    continue
                if isinstance(sweep, IntervalSweep) and "an integer" in error.remedy:
                    remedy = f"the values are decimal numbers: write int({_text(override)})"
                    raise _problem(override, remedy) from error
                raise _problem(override, f"{shown(value)} {error.remedy}") from error


def _problem(override: Override, remedy: str) -> ConfigError:
    return ConfigError(override.key_or_group, _text(override), remedy)


def _text(override: Override) -> str:
    return override.get_value_string()


def _check_interval(override: Override, start: Any, end: Any, is_log: bool) -> None:
    if not (math.isfinite(start) and math.isfinite(end)):
        raise _problem(override, "the ends must be finite")
    if start > end:
        raise _problem(override, f"the start is above the end: write interval({end}, {start})")
    if is_log and start <= 0:
        raise _problem(override, "a logarithmic interval must start above 0")


def _check_range(override: Override, start: Any, stop: Any, step: Any) -> None:
    if not all(map(math.isfinite, (start, stop, step))):
        raise _problem(override, "the ends and the step must be finite")
    if step <= 0:
        raise _problem(override, "the step must be greater than 0")
    if start > stop:
        raise _problem(override, "the start is above the end, so the range is empty")
    if step > stop - start:
        remedy = f"the step {step} does not fit into the range, which holds only {start}"
        raise _problem(override, remedy)


def _examples(override: Override) -> list[Any]:
    """Returns values of a sweep: the ends and one between them, or all choices."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        start, end = _number(sweep.start), _number(sweep.end)
        if isinstance(start, int) and isinstance(end, int):
            return [start, end]
        return [start, end, start + (end - start) * _INSIDE]
    if isinstance(sweep, RangeSweep):
        start, stop, step = _number(sweep.start), _number(sweep.stop), sweep.step
        # Optuna's ranges include their end.
        num_steps = math.floor((stop - start) / step + _ROUNDING)
        return [start, start + step, start + num_steps * step]
    return [_plain(value) for value in override.sweep_iterator()]


def _number(end: int | float | None) -> int | float:
    """Returns the end of an interval or a range, which Hydra has parsed."""
    assert end is not None
    return end


def _plain(value: Any) -> Any:
    """Returns an element of a choice without the marks of its quotes."""
    if isinstance(value, QuotedString):
        return value.text
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _as_sweep(key: str, entry: Any) -> str:
    """Returns the sweep that an entry of `hydra.sweeper.search_space` describes."""
    name = f"hydra.sweeper.search_space.{key}"
    if not isinstance(entry, Mapping):
        raise ConfigError(name, shown(entry), "must hold type, and low and high or choices")
    kind, kinds = str(entry.get("type")), ("int", "float", "categorical")
    if kind not in kinds:
        remedy = f"must be one of {', '.join(kinds)}{did_you_mean(kind, kinds)}"
        raise ConfigError(f"{name}.type", kind, remedy)
    for needed in ("choices",) if kind == "categorical" else ("low", "high"):
        if entry.get(needed) in (None, []):
            raise ConfigError(f"{name}.{needed}", "null", "a value is needed")
    if kind == "categorical":
        return f"choice({','.join(map(_written, entry['choices']))})"
    ends = f"{entry['low']},{entry['high']}"
    if entry.get("step") is not None:
        return f"{kind}(range({ends},{entry['step']}))"
    interval = f"{kind}(interval({ends}))"
    return f"tag(log,{interval})" if entry.get("log") else interval


def _written(value: object) -> str:
    """Returns a value as it is written on the command line."""
    return (
        QuotedString(value, Quote.single).with_quotes() if isinstance(value, str) else shown(value)
    )
