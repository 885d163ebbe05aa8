"""The generated parts of docs/reference/commands.md: the program's own help."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from functools import partial
from unittest import mock

from hydra._internal.utils import get_args_parser

from htsrl_cli.cli import main as cli
from htsrl_cli.cli.compose import Composer
from scripts.reference.markdown import table

# The effects of Hydra's flags, by the name under which the parser stores their values. Hydra's own
# help texts are not specific to htsrl.
FLAGS: Mapping[str, str] = {
    "help": "Print the verb's groups, keys and examples.",
    "hydra_help": "Print all flags of Hydra.",
    "cfg": "Print the configuration and run nothing: `job` for the keys of htsrl, `hydra` for "
    "Hydra's own keys, `all` for both.",
    "resolve": "With `--cfg` or `--help`: replace interpolations by their values.",
    "package": "With `--cfg`: print only this section.",
    "multirun": "Run a sweep: all combinations of the given values, or the values that `sweeper` "
    "chooses.",
    "config_name": "Use this primary YAML file instead of the verb's own.",
    "config_dir": "Search this additional folder for YAML files.",
    "info": "Print how the configuration is composed.",
}
# Flags that htsrl refuses, and flags that need no verb.
NOT_SHOWN = {"version", "run", "config_path", "experimental_rerun", "shell_completion"}


def usage() -> str:
    """Returns the text of `htsrl --help`."""
    return _block(cli.USAGE)


def examples(verb: str) -> str:
    """Returns the example commands at the beginning of `htsrl VERB --help`."""
    header = str(Composer(verb).job([]).hydra.help.header)
    _, _, found = header.partition("\n\n")
    return _block(textwrap.dedent(found), "bash")


def tool_help(verb: str) -> str:
    """Returns the text of `htsrl VERB --help` for a verb without a configuration."""
    output = io.StringIO()
    # Without these, help texts would depend on the terminal's width, and might be colored.
    environment = {"COLUMNS": "80", "NO_COLOR": "1"}
    with (
        mock.patch.dict("os.environ", environment),
        redirect_stdout(output),
        suppress(SystemExit),
    ):
        cli.TOOLS[verb](["--help"])
    return _block(output.getvalue())


def flags() -> str:
    """Returns the table of Hydra's flags."""
    rows = []
    for action in get_args_parser()._actions:
        if not action.option_strings or action.dest in NOT_SHOWN:
            continue
        names = ", ".join(f"`{name}`" for name in sorted(action.option_strings, key=len))
        values = ", ".join(f"`{choice}`" for choice in action.choices or ())
        takes = values or (action.dest.upper() if action.nargs is None else "")
        rows.append([names, takes, FLAGS[action.dest]])
    return table(["Flag", "Takes", "Effect"], rows)


def _block(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.strip()}\n```"


REGIONS: Mapping[str, Callable[[], str]] = {
    "usage": usage,
    **{verb: partial(examples, verb) for verb in cli.TASKS},
    **{verb: partial(tool_help, verb) for verb in cli.TOOLS},
    "flags": flags,
}
