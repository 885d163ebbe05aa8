"""Checkpoints made with another version of the package that saves environment states."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.envs.state import state_packages
from htsrl_cli.errors import CheckpointError
from htsrl_cli.evaluation import play as evaluation
from tests import harness, sections

STEPS = 3 * harness.STEPS_PER_ROLLOUT
CONFIG = replace(harness.small_config("atari", "a2c", runner="serial"), total_steps=STEPS)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Returns the last checkpoint of a small run on Breakout."""
    folder = tmp_path_factory.mktemp("run")
    harness.run(CONFIG, folder)
    return load_checkpoint(find_checkpoint(folder))


def resume(stored: Checkpoint, folder: Path, packages: dict[str, str] | None) -> None:
    """Resumes from a checkpoint that names `packages`, or no packages if None."""
    meta = {key: value for key, value in stored.meta.items() if key != "packages"}
    if packages is not None:
        meta["packages"] = packages
    path = folder / "a.ckpt"
    save_checkpoint(path, Checkpoint(stored.arrays, meta))
    longer = replace(CONFIG, total_steps=STEPS + harness.STEPS_PER_ROLLOUT)
    harness.run(longer, folder / "run", path)


def test_a_checkpoint_names_the_package_of_its_states(stored: Checkpoint) -> None:
    assert stored.meta["packages"] == {"ale-py": version("ale-py")}


@pytest.mark.parametrize("config", [sections.gym("CartPole-v1"), sections.synthetic("count")])
def test_states_that_are_replays_have_no_package(config: EnvConfig) -> None:
    assert state_packages(config) == {}


def test_every_kind_with_states_of_its_own_names_a_package() -> None:
    assert state_packages(sections.atari("pong")).keys() == {"ale-py"}
    pytest.importorskip("gfootball", reason=harness.NO_FOOTBALL)
    assert state_packages(sections.football("5_vs_5")).keys() == {"gfootball"}


def test_another_version_is_refused_in_one_line(stored: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resume(stored, tmp_path, {"ale-py": "0.11.2"})
    assert str(caught.value) == (
        "the checkpoint's environment states were saved by ale-py 0.11.2, but "
        f"{version('ale-py')} is installed: install ale-py 0.11.2 to resume"
    )


@pytest.mark.parametrize("packages", [None, {"ale-py": version("ale-py")}], ids=["before", "same"])
def test_the_same_version_and_checkpoints_of_before_go_on(
    stored: Checkpoint, tmp_path: Path, packages: dict[str, str] | None
) -> None:
    resume(stored, tmp_path, packages)


def test_an_evaluation_reads_no_states(stored: Checkpoint, tmp_path: Path) -> None:
    other = Checkpoint(stored.arrays, stored.meta | {"packages": {"ale-py": "0.11.2"}})
    path = tmp_path / "a.ckpt"
    assert evaluation.play(other, sections.eval(str(path), episodes=1, greedy=False), path)
