"""Kinds from outside htsrl: from a package, and from a file in the working directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Htsrl

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "plugin"
SMALL = ("actors.num_envs=4", "runner.sync_interval=16", "log.tensorboard=false")

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.num_features = config.kwargs["width"]
        self.layer = nn.Linear(spec.obs_shape[0], self.num_features)
        self.unused = nn.GRU(2, 3)
        self.register_buffer("shift", torch.rand(self.num_features))

    def forward(self, obs):
        return torch.relu(self.layer(obs.to(self.layer.weight.dtype)) + self.shift)


class NoNetwork:
    def __init__(self, config, spec):
        pass
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Installs the example package into a folder; returns environment variables to use it."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*install, str(PACKAGE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(folder)])}


def test_a_packages_kinds_are_listed_and_completed(htsrl: Htsrl, site: dict[str, str]) -> None:
    assert "corridor" in htsrl("list", "env", env=site).stdout
    assert "A gated layer" in htsrl("list", "network", env=site).stdout
    assert "reinforce" in htsrl("list", "algo", env=site).stdout
    line = {"COMP_LINE": "htsrl train env=corr"}
    assert htsrl("-sc", "query=bash", env=site | line).stdout.split() == ["env=corridor"]
    assert "corridor" not in htsrl("list", "env").stdout


def test_a_packages_kinds_train_resume_and_are_evaluated(
    htsrl: Htsrl, site: dict[str, str], tmp_path: Path
) -> None:
    words = ("train", "experiment=corridor", *SMALL, "total_steps=12_800")
    whole = htsrl(*words, "hydra.run.dir=whole", env=site)
    assert whole.returncode == 0, whole.stderr
    # No warning: resumes of this run are exact.
    assert "not be exact" not in whole.stderr
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["metric"] > 0.5, "it learns to walk to the door"
    serial = htsrl(*words, "hydra.run.dir=serial", "runner=serial", env=site)
    assert serial.returncode == 0, serial.stderr
    digests = [name for name in summary if name.endswith("sha256")]
    again = json.loads((tmp_path / "serial" / "summary.json").read_text())
    assert {name: again[name] for name in digests} == {name: summary[name] for name in digests}
    played = htsrl("eval", "checkpoint=whole", "episodes=4", env=site)
    assert played.returncode == 0, played.stderr
    longer = htsrl("train", "resume=whole", "total_steps=14_000", env=site)
    assert longer.returncode == 0, longer.stderr


def test_a_packages_keys_are_checked_like_ours(htsrl: Htsrl, site: dict[str, str]) -> None:
    run = htsrl("train", "env=corridor", "env.length=0", env=site)
    assert (run.returncode, run.stderr) == (
        2,
        "htsrl: error: env.length=0: must be 2 or more\n",
    )


def test_a_run_of_a_package_that_is_not_there_is_refused(
    htsrl: Htsrl, site: dict[str, str], tmp_path: Path
) -> None:
    words = ("train", "experiment=corridor", *SMALL, "total_steps=256", "hydra.run.dir=run")
    assert htsrl(*words, env=site).returncode == 0
    for verb in (("train", "resume=run"), ("eval", "checkpoint=run")):
        run = htsrl(*verb)
        assert run.returncode == 2
        (line,) = run.stderr.splitlines()
        assert "env.kind=corridor: must be one of" in line


def test_a_network_in_the_working_directory(htsrl: Htsrl, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NETWORK)
    words = ("train", "env=synthetic/count", *SMALL, "total_steps=320", "network.name=mine:Net")
    found = []
    for runner in ("hts", "serial"):
        words_of_run = (*words, "+network.kwargs.width=5", f"runner={runner}")
        run = htsrl(*words_of_run, f"hydra.run.dir={runner}")
        assert run.returncode == 0, run.stderr
        summary = json.loads((tmp_path / runner / "summary.json").read_text())
        found.append([summary["params_sha256"], summary["rollouts_sha256"]])
    assert found[0] == found[1]
    played = htsrl("eval", "checkpoint=hts", "episodes=2", "trusted=true")
    assert played.returncode == 0, played.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine:Nothing", "module mine has no Nothing"),
        ("nowhere:Net", "there is no module nowhere"),
        ("mine:NoNetwork", "it must return a torch.nn.Module with an integer num_features"),
        ("alexnet", "must be one of auto, impala_resnet, mlp, nature_cnn, small_cnn"),
    ],
)
def test_networks_that_are_none(htsrl: Htsrl, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(NETWORK)
    run = htsrl("train", "env=synthetic/count", f"network.name={name}")
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"htsrl: error: network.name={name}: {said}")
    assert not (tmp_path / "runs").exists()


def test_network_that_does_not_fit(htsrl: Htsrl, tmp_path: Path) -> None:
    run = htsrl("train", "env=gym", "env.id=CartPole-v1", "network=nature_cnn")
    assert run.returncode == 2
    assert "network.name=nature_cnn: needs images of at least 36 x 36" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_users_yaml_files_are_listed_and_completed(htsrl: Htsrl, tmp_path: Path) -> None:
    (tmp_path / "mine" / "env").mkdir(parents=True)
    (tmp_path / "mine" / "env" / "pole.yaml").write_text("# A pole.\nkind: gym\nid: CartPole-v1\n")
    assert "pole" not in htsrl("list", "env").stdout
    listed = htsrl("list", "env", "--config-dir", "mine").stdout
    assert any(line.split(maxsplit=1) == ["pole", "A pole."] for line in listed.splitlines())
    line = {"COMP_LINE": "htsrl train --config-dir mine env=po"}
    assert htsrl("-sc", "query=bash", env=line).stdout.split() == ["env=pole"]
    missing = htsrl("list", "--config-dir", "nowhere")
    assert (missing.returncode, missing.stderr) == (
        2,
        "htsrl: error: --config-dir=nowhere: there is no such folder\n",
    )
