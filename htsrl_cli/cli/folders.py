"""Names of run folders: of a single run, and of a job in a sweep.

The names consist of characters that need no quotes in `resume=FOLDER` and `checkpoint=FOLDER`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from htsrl_cli.cli.compose import parse_overrides, resolved
from htsrl_cli.cli.explain import first_line
from htsrl_cli.config.wording import shown
from htsrl_cli.errors import ConfigError

# A name is cut after this many characters. File systems allow names of 255 bytes.
_LONGEST_NAME = 120
# The key of a list with the names of the overrides that a job's folder is not named after.
_LEFT_OUT = "hydra.job.config.override_dirname.exclude_keys"


def safe_name(text: str) -> str:
    """Returns `text` with a hyphen in place of characters that a shell or Hydra treats specially.

    Only ASCII letters, digits, `_`, `.` and `-` remain.
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")


def short_name(name: str) -> str:
    """Returns `name`, or its beginning and a digest if `name` is too long for a folder's name."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def env_folder(*, _root_: DictConfig) -> str:
    """Returns the folder of an environment's runs: its option, or for `env=gym` its id.

    Each part of the option (`atari/pong`) is a folder. An id that is missing gives `gym`.

    Args:
        _root_: a composed configuration.
    """
    option = str(_root_.hydra.runtime.choices.get("env"))
    if option == "gym":
        return short_name(safe_name(str(_root_.env.get("id") or option)))
    return "/".join(short_name(safe_name(part)) for part in option.split("/"))


def job_folder(*, _root_: DictConfig) -> str:
    """Returns the name of a job's folder in a sweep: its number, and the values of the sweep.

    For example, `2_atari-qbert_seed-3` is the third job of `env=atari/pong,atari/qbert seed=3,4`.

    Args:
        _root_: the composed configuration of the job.
    """
    hydra = _root_.hydra
    left_out = set(OmegaConf.select(hydra, _LEFT_OUT.removeprefix("hydra.")))
    overrides = parse_overrides([str(word) for word in hydra.overrides.task])
    # If a key is given twice, the last value is valid.
    last = {override.key_or_group: override for override in overrides}
    named = [override for key, override in last.items() if key not in left_out]
    last_parts = Counter(_last_part(override) for override in named)
    parts = [str(hydra.job.num)]
    for override in named:
        key, value = override.key_or_group, _value_name(override.value())
        if key not in hydra.runtime.choices:
            name = _last_part(override)
            value = f"{safe_name(name if last_parts[name] == 1 else key)}-{value}"
        parts.append(value)
    return short_name("_".join(parts))


def _last_part(override: Override) -> str:
    return override.key_or_group.rpartition(".")[2]


def _value_name(value: Any) -> str:
    """Returns a value in the form that it has in the name of a folder; numbers are rounded."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.4g}".replace("+", "") if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return "-".join(map(_value_name, value))
    return safe_name(value.text if isinstance(value, QuotedString) else shown(value))


def naming(overrides: Sequence[str]) -> str:
    """Returns the override that makes Hydra name jobs only after what differs between them.

    Args:
        overrides: the overrides of a multirun.
    """
    parsed = parse_overrides(overrides)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    fixed = {override.key_or_group for override in parsed} - swept
    return f"{_LEFT_OUT}=[{','.join(repr(key) for key in sorted(fixed))}]"


OmegaConf.register_new_resolver("env_folder", env_folder, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)


class FolderNames(Callback):
    """Hydra callback that makes the resolvers known in the processes that launchers start.

    Such a process resolves a job's folder before it calls htsrl. Even earlier, the process
    unpickles the sweep's callbacks. Unpickling this class imports this module, which registers the
    resolvers.
    """


def output_dir(cfg: DictConfig, multirun: bool) -> Path:
    """Returns the folder that Hydra will give to the job `cfg`.

    Sets Hydra's global `HydraConfig`, because interpolations in the folder's name read it.

    Raises:
        ConfigError: the folder's name is missing or cannot be resolved, or the value of a key of
            htsrl that it contains.
    """
    HydraConfig.instance().set_config(cfg)
    keys = ["hydra.sweep.dir", "hydra.sweep.subdir"] if multirun else ["hydra.run.dir"]
    parts = []
    for key in keys:
        try:
            part = OmegaConf.select(cfg, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            resolved(cfg)
            section, _, name = key.rpartition(".")
            sources: Any = OmegaConf.to_container(OmegaConf.select(cfg, section), resolve=False)
            raise ConfigError(key, sources[name], first_line(error)) from error
        if part is None:
            raise ConfigError(key, "null", f"a folder is needed: {key}=DIR")
        parts.append(str(part))
    return Path(*parts)
