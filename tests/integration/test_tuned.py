"""Tests of tuned settings in commands: where a run says them, and which job gets which."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tests.conftest import Htsrl

SMALL = (
    "env=gym",
    "total_steps=600",
    "actors.num_envs=2",
    "actors.num_executors=1",
    "runner.sync_interval=64",
    "log.tensorboard=false",
    "algo.update_epochs=1",
    "algo.num_minibatches=1",
)


def config_of(folder: Path) -> DictConfig:
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    return config


def test_run_says_its_settings_and_stores_them(htsrl: Htsrl, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = (*SMALL, "env.id=CartPole-v1", "algo.gamma=0.5", f"hydra.run.dir={run_dir}")
    run = htsrl("train", *words)
    assert run.returncode == 0, run.stderr
    said = "tuned=ppo/CartPole-v1: RL Zoo's settings. algo.learning_rate=0.001"
    for text in (run.stderr, (run_dir / "train.log").read_text()):
        (line,) = (line for line in text.splitlines() if "tuned=" in line)
        assert said in line
        assert "gamma" not in line
        assert "num_envs" not in line
    config = config_of(run_dir)
    assert config.algo.gae_lambda == 0.8
    assert config.algo.gamma == 0.5
    hydra = config_of(run_dir / ".hydra")
    assert hydra.algo.gae_lambda == 0.8
    resumed = htsrl("train", f"resume={run_dir}", "total_steps=800")
    assert resumed.returncode == 0, resumed.stderr
    assert "tuned=" not in resumed.stderr
    assert config_of(run_dir).algo == config.algo


def test_each_job_of_a_sweep_gets_its_settings(htsrl: Htsrl, tmp_path: Path) -> None:
    words = ("-m", *SMALL, "env.id=CartPole-v1,Acrobot-v1", f"hydra.sweep.dir={tmp_path}/sweep")
    run = htsrl("train", *words)
    assert run.returncode == 0, run.stderr
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/config.yaml"))
    algos = {str(config_of(folder).env.id): config_of(folder).algo for folder in folders}
    assert algos["CartPole-v1"].gae_lambda == 0.8
    assert algos["Acrobot-v1"].gae_lambda == 0.95


def test_shown_configuration_has_the_settings(htsrl: Htsrl) -> None:
    run = htsrl("train", "env=gym", "env.id=CartPole-v1", "--cfg", "job")
    assert "gae_lambda: 0.8" in run.stdout
    run = htsrl("train", "env=gym", "env.id=CartPole-v1", "tuned=none", "--cfg", "job")
    assert "gae_lambda: 0.95" in run.stdout


def test_settings_of_the_user(htsrl: Htsrl, tmp_path: Path) -> None:
    file = tmp_path / "conf" / "tuned" / "ppo" / "Acrobot-v1.yaml"
    file.parent.mkdir(parents=True)
    settings = "resume: null\nalgo:\n  gamma: 0.9\n"
    words = ("--config-dir=conf", *SMALL, "env.id=Acrobot-v1")
    file.write_text(settings)
    refused = htsrl("train", *words)
    assert refused.returncode == 2
    assert f"{file}, line 1: " in refused.stderr
    assert "write # @package _global_ on the first line" in refused.stderr
    file.write_text(f"# @package _global_\n# Mine.\n{settings}")
    run = htsrl("train", *words)
    assert run.returncode == 0, run.stderr
    assert "tuned=ppo/Acrobot-v1: Mine. resume=null algo.gamma=0.9" in run.stderr
