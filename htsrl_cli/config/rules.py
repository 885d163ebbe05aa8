"""Rules for single values: the range of a number, the words to choose from.

Every section's dataclass names the rule of each of its keys in `rules`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from htsrl_cli.config.wording import did_you_mean, shown
from htsrl_cli.errors import ConfigError

# Seeds key a 64-bit counter-based generator.
_SEEDS = 2**63


@dataclass(frozen=True)
class Rule:
    """A condition on a value.

    Attributes:
        holds: returns True for a value that may be used.
        remedy: what a value must be, for the error.
        choices: the words to choose from; empty where it is no choice.
    """

    holds: Callable[[Any], bool]
    remedy: str
    choices: tuple[str, ...] = ()


Rules = Mapping[str, Rule]


def between(low: float, high: float) -> Rule:
    """Returns the rule for a number from `low` to `high`."""
    return Rule(lambda value: low <= value <= high, f"must be between {low} and {high}")


def one_of(*names: str) -> Rule:
    """Returns the rule for one of some words."""
    return Rule(lambda value: value in names, f"must be one of {', '.join(names)}", names)


POSITIVE = Rule(lambda value: 0 < value < math.inf, "must be finite and greater than 0")
NOT_NEGATIVE = Rule(lambda value: 0 <= value < math.inf, "must be finite and not negative")
COUNT = Rule(lambda value: 1 <= value < _SEEDS, "must be 1 or more")
INDEX = Rule(lambda value: 0 <= value < _SEEDS, "must be 0 or more")
SEED = Rule(lambda value: 0 <= value < _SEEDS, "must be between 0 and 2**63 - 1")
FRACTION = between(0.0, 1.0)
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
PRECISION = one_of("fp32", "bf16")
SCORES = Rule(lambda scores: all(map(math.isfinite, scores)), "must be a list of finite scores")


def check_rules(prefix: str, section: object, rules: Rules) -> None:
    """Applies the rules of a section's keys.

    Args:
        prefix: of the keys' names, for example `algo.`.

    Raises:
        ConfigError: for the first key that has to change.
    """
    for field, rule in rules.items():
        value = getattr(section, field)
        if not rule.holds(value):
            hint = did_you_mean(value, rule.choices) if isinstance(value, str) else ""
            raise ConfigError(f"{prefix}{field}", shown(value), rule.remedy + hint)
