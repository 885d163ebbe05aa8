"""The text of `htsrl VERB --help`."""

from __future__ import annotations

import textwrap
from string import Template

from omegaconf import DictConfig, OmegaConf, open_dict

from htsrl_cli.cli import listing

_WIDTH = 100


def text(cfg: DictConfig, config_dir: str | None, resolve: bool) -> str:
    """Returns the help of a verb: its description, groups with options, and keys with values.

    Hydra's own help takes seconds, because it copies all configurations for each group.

    Args:
        cfg: a composed configuration, whose section `hydra.help` holds the verb's template.
        config_dir: the user's additional folder of YAML files (`--config-dir`).
        resolve: True to show the values of interpolations, not their source text (`${...}`).
    """
    template = Template(cfg.hydra.help.template)
    keys = cfg.copy()
    with open_dict(keys):
        del keys["hydra"]
    groups = (_group(name, config_dir) for name in listing.groups(config_dir))
    filled = template.substitute(
        APP_CONFIG_GROUPS="".join(f"{line}\n" for line in groups),
        CONFIG=OmegaConf.to_yaml(keys, resolve=resolve),
    )
    return filled.rstrip()


def _group(name: str, config_dir: str | None) -> str:
    options = ", ".join(listing.options(name, config_dir))
    return textwrap.fill(
        f"{name}: {options}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False
    )
