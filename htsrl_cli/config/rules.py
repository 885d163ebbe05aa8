"""Rules for single values: ranges of numbers, and words to choose from.

The dataclass of each section holds the rules of its keys in the class attribute `rules`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from htsrl_cli.config.wording import did_you_mean, shown
from htsrl_cli.errors import ConfigError

# Seeds and counts must fit into a signed 64-bit integer.
_SEEDS = 2**63


@dataclass(frozen=True)
class Rule:
    """Condition on a value.

    Attributes:
        holds: function that returns True if the value is valid.
        remedy: text for the error message that says what the value must be.
        choices: the valid words; empty if the rule is not a list of words.
    """

    holds: Callable[[Any], bool]
    remedy: str
    choices: tuple[str, ...] = ()


Rules = Mapping[str, Rule]


def between(low: float, high: float) -> Rule:
    """Returns the rule for a number from `low` to `high`, both included."""
    return Rule(lambda value: low <= value <= high, f"must be between {low} and {high}")


def count_to(most: int) -> Rule:
    """Returns the rule for a count that takes memory or processes, which `most` limits."""
    return between(1, most)


def one_of(*names: str) -> Rule:
    """Returns the rule for a value that is one of `names`."""
    return Rule(lambda value: value in names, f"must be one of {', '.join(names)}", names)


POSITIVE = Rule(lambda value: 0 < value < math.inf, "must be finite and greater than 0")
AT_LEAST_ONE = Rule(lambda value: 1 <= value < math.inf, "must be finite and at least 1")
NOT_NEGATIVE = Rule(lambda value: 0 <= value < math.inf, "must be finite and not negative")
COUNT = Rule(lambda value: 1 <= value < _SEEDS, "must be between 1 and 2**63 - 1")
INDEX = Rule(lambda value: 0 <= value < _SEEDS, "must be between 0 and 2**63 - 1")
# Float32 can represent rates up to 3.4e38; a larger one would make parameters infinite.
RATE = Rule(lambda value: 0 < value < 1e38, "must be greater than 0 and less than 1e38")
SEED = Rule(lambda value: 0 <= value < _SEEDS, "must be between 0 and 2**63 - 1")
FRACTION = between(0.0, 1.0)
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
OPTIONAL_COUNT = Rule(
    lambda value: value is None or 1 <= value < _SEEDS, "must be null, or between 1 and 2**63 - 1"
)
NOT_EMPTY = Rule(bool, "must not be empty")
ONE_WORD = Rule(
    lambda value: re.fullmatch(r"\S+", value) is not None, "must be one word, without spaces"
)
# The weights between two layers then take at most 1 GiB.
SIZES = Rule(
    lambda sizes: (
        bool(sizes)
        and min(sizes) >= 1
        and max(sizes) <= 65_536
        and all(before * size <= 2**28 for before, size in pairwise(sizes))
    ),
    "must be a list of one or more positive sizes of at most 65536, and of at most 2**28 weights "
    "between two layers",
)
DEVICE = Rule(
    lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
    "must be auto, cpu or cuda:N",
)
PRECISION = one_of("fp32", "bf16")
ACTIVATION = one_of("tanh", "relu", "elu", "silu", "gelu")
MEMORY = one_of("none", "lstm", "gru")
LINEAR_KERNELS = ("product", "convolution")
LINEAR_KERNEL = one_of(*LINEAR_KERNELS)
SCORES = Rule(lambda scores: all(map(math.isfinite, scores)), "must be a list of finite scores")


def check_rules(prefix: str, section: object, rules: Rules) -> None:
    """Checks the keys of a section against their rules.

    Args:
        prefix: prefix of the keys' names in error messages, for example `algo.`.

    Raises:
        ConfigError: a value is invalid; the first one is reported.
    """
    for field, rule in rules.items():
        value = getattr(section, field)
        if not rule.holds(value):
            hint = did_you_mean(value, rule.choices) if isinstance(value, str) else ""
            raise ConfigError(f"{prefix}{field}", shown(value), rule.remedy + hint)
