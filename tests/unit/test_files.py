"""YAML files that users wrote wrong: one line that names the file, the line and the remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.errors import ConfigError, UsageError
from tests.conftest import Htsrl
from tests.integration.refusals import assert_refused

HEADER = "# @package _global_\n"
# Text or bytes of a preset, the line with the mistake, and what the error says.
FILES: dict[str, tuple[str | bytes, int, str]] = {
    "tab": (f"{HEADER}algo:\n\tgamma: 0.9\n", 3, "indent with spaces"),
    "tab after spaces": (f"{HEADER}algo:\n  gamma: 1\n \t seed: 1\n", 4, "indent with spaces"),
    "indented too far": (
        f"{HEADER}algo:\n  gamma: 0.9\n   seed: 1\n",
        4,
        "correct the indentation",
    ),
    "indented too little": (f"{HEADER}algo:\n  gamma: 1\n seed: 1\n", 4, "correct the indentation"),
    "key twice": (f"{HEADER}seed: 1\nseed: 2\n", 3, "duplicate key seed: delete one"),
    "BOM": (f"\ufeff{HEADER}seed: 1\n", 1, "without BOM"),
    "Latin-1": (f"{HEADER}# caf\u00e9\nseed: 1\n".encode("latin-1"), 2, "save the file as UTF-8"),
    "UTF-16": (f"{HEADER}seed: 1\n".encode("utf-16"), 1, "save the file as UTF-8"),
    "binary": (b"\0\0\0", 1, "delete it"),
    "no package": ("seed: 2\n", 1, "write # @package _global_ on the first line"),
    "mistyped package": ("# @package _globl_\nseed: 2\n", 1, "write # @package _global_"),
    "late package": (f"# Mine\n{HEADER}seed: 2\n", 1, "write # @package _global_ on the first"),
    "empty package": ("# @package\nseed: 2\n", 1, "write # @package _global_"),
    "list": (f"{HEADER}- seed\n", 2, "a list where keys are needed"),
    "word": (f"{HEADER}seed\n", 2, "text where keys are needed"),
    "list for a section": (f"{HEADER}seed: 1\nalgo: [1]\n", 3, "algo is a list"),
    "number for a section": (f"{HEADER}seed: 1\nalgo: 3\n", 3, "must hold keys and values"),
    "section for a number": (f"{HEADER}seed:\n  algo: 3\n", 2, "must be an integer"),
    "text for a number": (f"{HEADER}\nseed: many\n", 3, "must be an integer"),
    "unknown key": (f"{HEADER}algo:\n  gama: 1\n", 3, "did you mean gamma?"),
    "value out of range": (f"{HEADER}algo:\n  gamma: 2\n", 3, "must be between 0.0 and 1.0"),
    "empty": ("", 1, "the file holds no keys"),
    "comments only": (HEADER, 1, "the file holds no keys"),
    "number as a key": (f"{HEADER}1: 2\n", 2, "1 is no name of a key"),
    "two colons": (f"{HEADER}seed: 1: 2\n", 2, "colons or quotes"),
    "open quote": (f"{HEADER}seed: 'a\n", 3, "colons or quotes"),
    "open interpolation": (f"{HEADER}seed: ${{\n", 2, "no viable alternative"),
    "unknown alias": (f"{HEADER}seed: *one\n", 2, "quote a value"),
    "code": (f"{HEADER}seed: !!python/object:os.system 1\n", 2, "write a plain value"),
    "two documents": (f"{HEADER}seed: 1\n---\nseed: 2\n", 3, "delete the line ---"),
    "defaults that are text": (f"{HEADER}defaults: algo\n", 2, "defaults must be a list"),
    "defaults that are a section": (f"{HEADER}defaults:\n  algo: ppo\n", 3, "must be a list"),
    "number in defaults": (f"{HEADER}defaults:\n  - 3\n", 3, "write one GROUP: OPTION"),
    "two groups in an entry": (
        f"{HEADER}defaults:\n  - override /algo: a2c\n    override /runner: sync\n",
        3,
        "write one GROUP: OPTION",
    ),
    "unknown option": (f"{HEADER}defaults:\n  - override /algo: pppo\n", 3, "did you mean ppo?"),
    "unknown group": (f"{HEADER}defaults:\n  - override /algos: ppo\n", 3, "did you mean algo?"),
    "group without a slash": (f"{HEADER}defaults:\n  - override algo: ppo\n", 3, "write /algo"),
    "group without override": (f"{HEADER}defaults:\n  - /algo: a2c\n", 3, "override /algo"),
    "later group": (f"{HEADER}defaults:\n  - override /debug: default\n", 3, "on the command line"),
    "unknown file": (f"{HEADER}defaults:\n  - other\n", 3, "no file experiment/other.yaml"),
    "the file itself": (f"{HEADER}defaults:\n  - mine\n", 3, "is this file itself"),
}


def write(folder: Path, text: str | bytes, name: str = "experiment/mine") -> Path:
    """Writes a YAML file to a folder for `--config-dir`, and returns its path."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(folder: Path, *words: str, config_name: str = "train") -> str:
    """Returns the error of `htsrl train --config-dir FOLDER WORDS ...`."""
    composer = Composer(config_name, str(folder))
    try:
        to_train_config(composer.job(words))
    except ConfigError as error:
        return str(composer.located(error, words))
    except UsageError as error:
        return str(error)
    raise AssertionError("no error")


@pytest.mark.parametrize(("text", "line", "remedy"), FILES.values(), ids=FILES)
def test_error_names_file_line_and_remedy(
    tmp_path: Path, text: str | bytes, line: int, remedy: str
) -> None:
    path = write(tmp_path, text)
    error = error_of(tmp_path, "experiment=mine")
    assert "\n" not in error
    assert f"{path}, line {line}" in error
    assert remedy in error


def test_files_that_lead_to_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}defaults: [other]\n")
    write(tmp_path, f"{HEADER}defaults: [mine]\n", "experiment/other")
    assert f"{path}, line 1: the defaults list leads back" in error_of(tmp_path, "experiment=mine")


def test_primary_file(tmp_path: Path) -> None:
    path = write(tmp_path, "defaults:\n  - train\n  - _self_\n\nseed: 1\nseed: 2\n", "mine")
    assert f"{path}, line 6: " in error_of(tmp_path, config_name="mine")
    path = write(tmp_path, "defaults:\n  - train\n  - _self_\n\nseed: -1\n", "mine")
    assert f"({path}, line 5)" in error_of(tmp_path, config_name="mine")


def test_command_line_is_not_blamed_on_a_file(tmp_path: Path) -> None:
    write(tmp_path, f"{HEADER}seed: 3\n")
    assert "mine.yaml" not in error_of(tmp_path, "experiment=mine", "seed=-1")


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}# Mine\ndefaults:\n  - override /algo: a2c\n  - _self_\n\nseed: 1\n",
        f"{HEADER}defaults:\n  - cartpole_ppo\n\nseed: 1\n",
        f"{HEADER}defaults: [/experiment/cartpole_ppo@_here_, {{optional x: y}}]\n\nseed: 1\n",
        f"{HEADER}defaults:\n  - override /env: gym\n\nenv: {{id: A}}\n",
        f"{HEADER}defaults: []\n\nseed: 1\nalgo: {{gamma: 0.5}}\n",
        "# @package algo\ngamma: 0.5\n",
    ],
)
def test_valid_files_are_accepted(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    assert to_train_config(Composer("train", str(tmp_path)).job(["experiment=mine"])).seed == 1


@pytest.mark.parametrize(
    "words",
    [
        ["train", "experiment=mine"],
        ["train", "experiment=mine", "--cfg", "job"],
        ["train", "--help"],
        ["train", "-m", "experiment=mine", "seed=1,2"],
        ["bench", "experiment=mine"],
        ["list"],
        ["list", "experiment"],
    ],
)
def test_every_command_refuses_a_broken_file(
    htsrl: Htsrl, tmp_path: Path, words: list[str]
) -> None:
    path = write(tmp_path, *FILES["tab"][:1])
    assert_refused(htsrl(*words, "--config-dir=."), "mine.yaml, line 3: a tab indents this line")
    assert [*tmp_path.iterdir()] == [path.parent]


def test_completion_says_nothing_about_a_broken_file(htsrl: Htsrl, tmp_path: Path) -> None:
    write(tmp_path, *FILES["tab"][:1])
    for line, found in [
        ("htsrl train --config-dir . experiment=mi", "experiment=mine"),
        ("htsrl train --config-dir . experiment=mine algo.gam", ""),
    ]:
        run = htsrl("-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
        assert (run.returncode, run.stderr) == (0, "")
        assert found in run.stdout
    assert os.listdir(tmp_path) == ["experiment"]
