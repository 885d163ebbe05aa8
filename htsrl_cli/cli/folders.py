"""Folders of jobs: short folder names in a sweep, and the folder that Hydra gives to a job."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from htsrl_cli.cli.explain import first_line
from htsrl_cli.errors import ConfigError

# File systems allow names of 255 bytes; this leaves room for the digest of a shortened name.
_LONGEST_NAME = 200


def short_name(name: str) -> str:
    """Returns `name`, or its beginning and a digest if `name` is too long for a folder's name."""
    data = name.encode()
    if len(data) <= _LONGEST_NAME:
        return name
    beginning = data[:_LONGEST_NAME].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(data).hexdigest()[:12]}"


OmegaConf.register_new_resolver("short_name", short_name, replace=True)


class FolderNames(Callback):
    """Hydra callback that makes `${short_name:...}` known in the processes that launchers start.

    Such a process resolves a job's folder before it calls htsrl. Even earlier, the process
    unpickles the sweep's callbacks. Unpickling this class imports this module, which registers the
    resolver.
    """


def output_dir(cfg: DictConfig, multirun: bool) -> Path:
    """Returns the folder that Hydra will give to the job `cfg`.

    Sets Hydra's global `HydraConfig`, because interpolations in the folder's name read it.

    Raises:
        ConfigError: the folder's name is missing or cannot be resolved.
    """
    HydraConfig.instance().set_config(cfg)
    keys = ["hydra.sweep.dir", "hydra.sweep.subdir"] if multirun else ["hydra.run.dir"]
    parts = []
    for key in keys:
        try:
            part = OmegaConf.select(cfg, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            section, _, name = key.rpartition(".")
            sources: Any = OmegaConf.to_container(OmegaConf.select(cfg, section), resolve=False)
            raise ConfigError(key, sources[name], first_line(error)) from error
        if part is None:
            raise ConfigError(key, "null", f"a folder is needed: {key}=DIR")
        parts.append(str(part))
    return Path(*parts)
