"""Overrides of a resume, which may name keys that only the resumed run has.

`resume=RUN env.id=CartPole-v1` is composed with the default environment, which has no key `env.id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString

from htsrl_cli.checkpoints.store import open_checkpoint
from htsrl_cli.cli.compose import parse_overrides
from htsrl_cli.config.auto import AUTO
from htsrl_cli.config.plain import flatten
from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.errors import CheckpointError, ConfigError
from htsrl_cli.plugins import SECTIONS


def fit_overrides(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with `++` before those keys of the resumed run that depend on its kind.

    Hydra then accepts them, whatever kind the default is. Whether a resume may change a value is
    checked later. The overrides are returned as they are if they do not resume a run.

    Raises:
        ConfigError: the run has no such key.
        UsageError: an override cannot be parsed.
    """
    parsed = parse_overrides(overrides)
    typed = {override.key_or_group: override for override in parsed}
    keys = [override for override in parsed if _depends_on_kind(override, typed)]
    source = _source(typed)
    if not keys or source is None:
        return list(overrides)
    try:
        stored = open_checkpoint(source)[1].meta.get("config", {})
    except CheckpointError:
        return list(overrides)
    known = [key for key, _ in flatten(stored)]
    for override in keys:
        key = override.key_or_group
        if not any(f"{key}.".startswith(f"{k}.") or k.startswith(f"{key}.") for k in known):
            remedy = f"the run has no such key{did_you_mean(key, known)}"
            raise ConfigError(key, override.get_value_string(), remedy)
    lines = {override.input_line for override in keys if override.key_or_group in known}
    return [f"++{word}" if word in lines else word for word in overrides]


def _depends_on_kind(override: Override, typed: Mapping[str, Any]) -> bool:
    """Returns True for a key of a section that chooses a kind, unless the kind is typed, too."""
    section, dot, _ = override.key_or_group.partition(".")
    is_plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    return bool(dot) and is_plain and section in SECTIONS and section not in typed


def _source(typed: Mapping[str, Override]) -> Path | None:
    """Returns the run folder or checkpoint file to resume; None if the overrides name none."""
    key = "resume"
    if key in typed and typed[key].value() == AUTO:
        key = "hydra.run.dir"
    value: Any = typed[key].value() if key in typed else None
    text = value.text if isinstance(value, QuotedString) else value
    return Path(text) if isinstance(text, str) and text else None
