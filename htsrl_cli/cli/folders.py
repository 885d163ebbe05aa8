"""Folders of jobs: short names within a sweep, and the folder that Hydra gives to a job."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from htsrl_cli.cli.explain import first_line
from htsrl_cli.errors import ConfigError

# File systems allow names of 255 bytes; a shortened name also has a digest.
_LONGEST_NAME = 200


def short_name(name: str) -> str:
    """Returns a folder's name; a long name becomes its beginning and a digest."""
    data = name.encode()
    if len(data) <= _LONGEST_NAME:
        return name
    beginning = data[:_LONGEST_NAME].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(data).hexdigest()[:12]}"


OmegaConf.register_new_resolver("short_name", short_name, replace=True)


class FolderNames(Callback):
    """Hydra callback that registers `${short_name:...}` in the processes of launchers.

    These processes resolve a job's folder before they import htsrl. The sweep's callbacks are
    unpickled even earlier, which imports this module.
    """


def output_dir(cfg: DictConfig, multirun: bool) -> Path:
    """Returns the folder that Hydra will give to the job `cfg`.

    Sets Hydra's global `HydraConfig`, which the name's interpolations read.

    Raises:
        ConfigError: the folder's name is missing or cannot be resolved.
    """
    HydraConfig.instance().set_config(cfg)
    keys = ["hydra.sweep.dir", "hydra.sweep.subdir"] if multirun else ["hydra.run.dir"]
    try:
        parts = [OmegaConf.select(cfg, key, throw_on_missing=True) for key in keys]
    except OmegaConfBaseException as error:
        raise ConfigError(keys[0], "???", first_line(error)) from error
    if any(part is None for part in parts):
        raise ConfigError(keys[0], "null", "a folder is needed")
    return Path(*map(str, parts))
