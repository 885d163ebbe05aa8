"""`sys.exit` in the code of a user or a package: an error with its place, never a success."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.harness import command, environment

# Where the environment of the example plugin leaves Python, as text to replace and its replacement.
PLACES = {
    "module": ("_STEP_COST = 0.01", "_STEP_COST = {exit}"),
    "constructor": ("self._config = config\n", "self._config = {exit}\n"),
    "probe": ("terminated = self._position", "terminated = {exit} or self._position"),
    "step": (
        "terminated = self._position",
        "self.steps = getattr(self, 'steps', 0) + 1\n"
        "        terminated = (self.steps > 95 and {exit}) or self._position",
    ),
    "state": ("meta = {\n", "meta = {exit} or {\n"),
}
SMALL = ("actors.num_envs=4", "runner.sync_interval=64", "algo.num_minibatches=1")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `htsrl WORDS` in `folder`, whose packages Python finds."""
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        command(*words),
        cwd=folder,
        env=environment() | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def install_plugin(folder: Path, place: str, code: str) -> None:
    """Puts the example plugin into `folder`; its environment calls `sys.exit(code)` at a place."""
    shutil.copytree(ROOT / "examples" / "plugin" / "htsrl_example", folder / "htsrl_example")
    info = folder / "htsrl_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: htsrl-example\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        "[htsrl.envs]\ncorridor = htsrl_example.corridor.config:KIND\n"
        "[htsrl.configs]\nexample = htsrl_example\n"
    )
    module = folder / "htsrl_example" / "corridor" / "environment.py"
    text, (old, new) = module.read_text(), PLACES[place]
    assert old in text
    new = new.replace("{exit}", f"__import__('sys').exit({code})")
    module.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("place", "code"),
    [*((place, "0") for place in PLACES), ("module", "'no licence'"), ("step", "'no licence'")],
)
def test_environment_that_exits(place: str, code: str, tmp_path: Path) -> None:
    install_plugin(tmp_path, place, code)
    ended = run(tmp_path, "train", "env=corridor", "runner=serial", *SMALL, "total_steps=640")
    assert ended.returncode == 1, ended.stderr
    assert "htsrl: error: " in ended.stderr
    assert f"SystemExit: {code.strip(chr(39))}" in ended.stderr
    assert "environment.py" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_network_that_exits(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    words = ("env=synthetic/count", "network.name=mine:Net", "total_steps=6400")
    ended = run(tmp_path, "train", *words)
    assert ended.returncode == 1, ended.stderr
    assert "htsrl: error: " in ended.stderr
    assert "SystemExit: 0" in ended.stderr
