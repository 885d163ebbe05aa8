"""The text of `htsrl VERB --help`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from string import Template
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from htsrl_cli.cli import listing
from htsrl_cli.plugins import SECTIONS

_WIDTH = 100
# Keys that are set by the option of a group.
_SET_BY_OPTION = (*(f"{section}.{tag}" for section, (tag, _) in SECTIONS.items()), "runner.name")
# Descriptions of options for the tests of htsrl begin with these words.
_INTERNAL = "For tests"


def text(cfg: DictConfig, config_dir: str | None, resolve: bool) -> str:
    """Returns the help of a verb: its description, groups with options, and keys with meanings.

    Hydra's own help takes seconds, because it copies all configurations for each group.

    Args:
        cfg: a composed configuration, whose section `hydra.help` holds the verb's template.
        config_dir: the user's additional folder of YAML files (`--config-dir`).
        resolve: True to show the values of interpolations, not their source text (`${...}`).
    """
    template = Template(cfg.hydra.help.template)
    keys = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values = OmegaConf.to_container(keys, resolve=resolve)
    assert isinstance(values, dict)
    chosen = cfg.hydra.runtime.choices
    # The file that defines a key explains it. A preset explains a value, so it comes last.
    files = sorted(chosen.items(), key=lambda choice: choice[0] not in values)
    comments: dict[str, str] = {}
    for name in [cfg.hydra.job.config_name, *(f"{group}/{option}" for group, option in files)]:
        comments = listing.comments(name, config_dir) | comments
    groups = [_group(name, config_dir) for name in listing.groups(config_dir) if name in chosen]
    filled = template.substitute(
        APP_CONFIG_GROUPS="".join(f"{line}\n" for line in groups),
        CONFIG="\n".join(_keys(values, comments)),
    )
    return filled.rstrip()


def _group(name: str, config_dir: str | None) -> str:
    options = listing.options(name, config_dir)
    shown = ", ".join(key for key, about in options.items() if not about.startswith(_INTERNAL))
    return textwrap.fill(f"{name}: {shown}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _keys(
    values: Mapping[Any, Any], comments: Mapping[str, str], prefix: str = ""
) -> Iterator[str]:
    """Yields a line for each key with its value and meaning; nested keys are indented."""
    indent = "  " * prefix.count(".")
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in _SET_BY_OPTION:
            continue
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _keys(value, comments, f"{key}.")
        else:
            written = yaml.safe_dump(value, default_flow_style=True, width=_WIDTH * 9)
            line = f"{indent}{name}: {written.removesuffix('...' + chr(10)).strip()}"
            yield _explained(line, comments.get(key, ""))


def _explained(line: str, comment: str) -> str:
    """Returns a line with a comment after it, which continues below if it is long."""
    if not comment:
        return line
    column = " " * len(line)
    return textwrap.fill(
        comment, _WIDTH, initial_indent=f"{line}  # ", subsequent_indent=f"{column}  # "
    )
