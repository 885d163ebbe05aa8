"""Modules that only a checkpoint names: nothing imports one unless the user asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from htsrl_cli.api import load_policy
from htsrl_cli.errors import ConfigError
from tests.conftest import Htsrl

ENVIRONMENT = """
import gymnasium, numpy
open("executed", "w").close()
class A(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return numpy.zeros(2, numpy.float32), {}
    def step(self, action):
        return numpy.zeros(2, numpy.float32), 1.0, True, False, {}
gymnasium.register("A-v0", A)
"""
NETWORK = """
import torch
open("executed", "w").close()
class Net(torch.nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.num_features = 8
        self.layer = torch.nn.Linear(spec.obs_shape[0], 8)
    def forward(self, obs):
        return self.layer(obs.to(self.layer.weight.dtype))
"""
SMALL = ("runner=serial", "actors.num_envs=4", "runner.sync_interval=64", "algo.num_minibatches=1")
CASES = {
    "environment": (ENVIRONMENT, ("env=gym", "env.id=payload:A-v0")),
    "network": (NETWORK, ("env=synthetic/count", "network.name=payload:Net")),
}


def trained(case: str, htsrl: Htsrl, folder: Path) -> tuple[str, str]:
    """Trains with a module; returns the word that names the module, and the run's log."""
    code, words = CASES[case]
    (folder / "payload.py").write_text(code)
    run = htsrl("train", *words, *SMALL, "total_steps=640", "hydra.run.dir=run")
    assert run.returncode == 0, run.stderr
    (folder / "executed").unlink()
    return words[1], run.stderr


@pytest.mark.parametrize("case", CASES)
def test_a_module_that_only_a_file_names_is_not_imported(
    case: str, htsrl: Htsrl, tmp_path: Path
) -> None:
    name, log = trained(case, htsrl, tmp_path)
    refused = htsrl("eval", "checkpoint=run", "episodes=1")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"names the module payload ({name})" in line
    assert "add trusted=true" in line
    assert not (tmp_path / "executed").exists()
    # The run's own last lines give the command with the key.
    assert "htsrl eval checkpoint=run trusted=true" in log
    assert f"htsrl train resume=run {name} total_steps=1280" in log
    played = htsrl("eval", "checkpoint=run", "episodes=1", "trusted=true")
    assert played.returncode == 0, played.stderr
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("case", CASES)
def test_a_resume_runs_only_code_that_the_command_names(
    case: str, htsrl: Htsrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = trained(case, htsrl, tmp_path)
    refused = htsrl("train", "resume=run", "total_steps=1280")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "names the module payload" in line
    assert f"add {name}" in line
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="add trusted=True"):
        load_policy("run")
    assert not (tmp_path / "executed").exists()
    resumed = htsrl("train", "resume=run", name, "total_steps=1280")
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "executed").exists()
