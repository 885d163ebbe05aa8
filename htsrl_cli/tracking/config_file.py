"""The file `config.yaml` of a run folder, which holds the resolved configuration of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
_MOST_CHARACTERS = 1_000_000


def read_config(run_dir: Path) -> dict[str, Any]:
    """Returns the content of `config.yaml` as stored, of any version of htsrl.

    Raises:
        ValueError: the file cannot be read, is larger than 1 MB, has aliases (a short file with
            aliases can stand for any number of values), or holds no keys and values.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = run_dir / CONFIG_FILE
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
        if len(text) > _MOST_CHARACTERS:
            raise ValueError("the file is too large")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("htsrl writes no aliases")
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict) or not plain:
        raise ValueError(f"{path} holds no keys and values")
    return {str(key): value for key, value in plain.items()}
