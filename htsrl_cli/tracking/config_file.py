"""The file `config.yaml` of a run folder, which holds the resolved configuration of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"


def read_config(run_dir: Path) -> dict[str, Any]:
    """Returns the content of `config.yaml` as stored, of any version of htsrl.

    Raises:
        ValueError: the file cannot be read, or holds no keys and values.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = run_dir / CONFIG_FILE
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{path} holds no keys and values")
    return {str(key): value for key, value in plain.items()}
