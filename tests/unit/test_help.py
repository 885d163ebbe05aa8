"""`--help` explains every key, and shows what a user can choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from htsrl_cli.cli import help, listing
from htsrl_cli.cli.compose import Composer
from htsrl_cli.config.plain import flatten
from tests.conftest import Htsrl

# Keys that the options of groups set.
HIDDEN = {"env.kind", "algo.name", "network.name", "runner.name"}


def lines(*words: str, verb: str = "train", config_dir: Path | None = None) -> list[str]:
    """Returns the lines of the help of a verb."""
    folder = str(config_dir) if config_dir else None
    composed = Composer(verb, folder).job(words)
    return help.text(composed, folder, resolve=False).splitlines()


@pytest.mark.parametrize("verb", ["train", "eval", "bench"])
def test_every_key_is_explained_on_its_line(verb: str) -> None:
    composed = Composer(verb).job([])
    values = {str(key): value for key, value in composed.items_ex(resolve=False) if key != "hydra"}
    keys = {key for key, _ in flatten(values)} - HIDDEN
    shown = lines(verb=verb)
    keyed = [line for line in shown[shown.index("") :] if ": " in line and "  # " in line]
    assert len(keyed) == len(keys)
    names = sorted(line.strip().partition(":")[0] for line in keyed)
    assert names == sorted(key.rpartition(".")[2] for key in keys)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "seed: 1  # seed of all random numbers of the run"),
        (["seed=3"], "seed: 3  # seed of all random numbers of the run"),
        (["algo=a2c"], "  learning_rate: 0.0007  # learning rate of RMSprop"),
        (["network=mlp"], "  hidden_sizes: [64, 64]  # number of units of each hidden layer"),
        (["env=gym"], "  kwargs: {}  # keyword arguments for gymnasium.make"),
        (["env=football/5_vs_5"], "  scenario: 5_vs_5  # name of the scenario; env=football/SCEN"),
        (["experiment=cartpole_ppo"], "  gamma: 0.98  # discount factor"),
    ],
)
def test_meaning_is_that_of_the_chosen_option(words: list[str], line: str) -> None:
    assert [found for found in lines(*words) if found.startswith(line)]


def test_meanings_are_wrapped(htsrl: Htsrl) -> None:
    for verb in ("train", "eval", "bench"):
        shown = htsrl(verb, "--help").stdout.splitlines()
        assert max(map(len, shown)) <= 100
        assert not [line for line in shown if line.strip() in ("kind: atari", "name: hts")]


def test_groups_that_a_user_cannot_choose_are_hidden() -> None:
    for verb, hidden in {"train": set(), "bench": {"debug", "hparams_search"}}.items():
        text = "\n".join(lines(verb=verb))
        assert "synthetic/" not in text
        for group in listing.groups():
            assert (f"\n{group}: " in text) == (group not in hidden)


def test_own_files_are_explained(tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    text = "num_envs: 3  # few\nnum_executors: 1\n"
    (tmp_path / "actors" / "few.yaml").write_text(text)
    shown = lines(config_dir=tmp_path)
    assert any(line.startswith("  num_envs: 16  # number of environments") for line in shown)
    assert listing.comments("actors/few", str(tmp_path)) == {"actors.num_envs": "few"}
    assert listing.comments("actors/none", str(tmp_path)) == {}
