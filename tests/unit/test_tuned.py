"""Tests of the tuned settings that are chosen by environment and algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.cli.listing import options
from htsrl_cli.errors import ConfigError
from tests import sections


class Blank(gymnasium.Env[Any, Any]):
    """An environment that can only be built."""

    def __init__(self, shape: tuple[int, ...] = (3,)) -> None:
        if not shape:
            raise RuntimeError("no shape")
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(2)


gymnasium.register("Blank-v0", entry_point=f"{__name__}:Blank")

OPTIONS = [name for name in options("tuned") if "/" in name]


def chosen(*words: str, config_dir: str | None = None) -> str:
    composed = Composer("train", config_dir).job(words)
    return str(composed.hydra.runtime.choices["tuned"])


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("env=gym env.id=CartPole-v1", "ppo/CartPole-v1"),
        ("env=gym env.id=CartPole-v1 algo=a2c", "a2c/CartPole-v1"),
        ("env=gym env.id=Acrobot-v1 algo=a2c", "a2c/vector"),
        ("env=gym env.id=Acrobot-v1", "ppo/vector"),
        ("env=gym env.id=Acrobot-v1 tuned=auto", "ppo/vector"),
        ("env=gym env.id=Acrobot-v1 tuned=none", "none"),
        ("env=gym env.id=Acrobot-v1 tuned=ppo/CartPole-v1", "ppo/CartPole-v1"),
        ("env=gym env.id=CartPole-v1 debug=default", "ppo/CartPole-v1"),
        ("env=gym env.id=CartPole-v1 hparams_search=ppo", "ppo/CartPole-v1"),
        ("experiment=cartpole_ppo", "auto"),
        ("env=gym env.id=Blank-v0", "ppo/vector"),
        ("env=gym env.id=Blank-v0 +env.kwargs.shape=[40,40,3]", "ppo/image"),
        ("env=gym env.id=Blank-v0 +env.kwargs.shape=[]", "auto"),
        ("env=gym env.id=Unknown-v0", "auto"),
        ("env=gym", "auto"),
        ("env=atari/pong", "auto"),
        ("env=football/11_vs_11_kaggle", "auto"),
        ("env=synthetic/sleep", "auto"),
    ],
)
def test_choice_follows_environment_and_algorithm(words: str, option: str) -> None:
    assert chosen(*words.split()) == option


def test_keys_of_the_user_win() -> None:
    cfg = Composer("train").job(["env=gym", "env.id=CartPole-v1", "algo.gamma=0.5"])
    config = to_train_config(cfg)
    assert config.algo.gamma == 0.5
    assert config.actors.num_envs == 8


def test_settings_in_a_folder_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "tuned" / "ppo" / "Mine-v0.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n# Mine.\nalgo:\n  gamma: 0.25\n")
    words = ["env=gym", "env.id=some_module:Mine-v0"]
    assert chosen(*words, config_dir=str(tmp_path)) == "ppo/Mine-v0"
    assert Composer("train", str(tmp_path)).job(words).algo.gamma == 0.25


def test_option_of_another_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tuned=ppo/CartPole-v1: is for algo=ppo"):
        chosen("env=gym", "env.id=CartPole-v1", "algo=a2c", "tuned=ppo/CartPole-v1")


def test_environment_is_built_once_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    construct = Blank.__init__

    def count(env: Blank, shape: tuple[int, ...]) -> None:
        built.append(shape)
        construct(env, shape)

    monkeypatch.setattr(Blank, "__init__", count)
    words = ["env=gym", "env.id=Blank-v0", "+env.kwargs.shape=[7]", "seed=1,2,3"]
    _, jobs = Composer("train").sweep(words)
    assert {job.hydra.runtime.choices.tuned for job in jobs} == {"ppo/vector"}
    assert len(built) == 1


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_valid(option: str) -> None:
    algo, name = option.split("/")
    env_id = "CartPole-v1" if name in ("vector", "image") else name
    words = ["env=gym", f"env.id={env_id}", f"algo={algo}", f"tuned={option}"]
    config = to_train_config(Composer("train").job(words))
    defaults = {"ppo": sections.ppo(), "a2c": sections.a2c()}[algo]
    assert (config.algo == defaults) == (name == "image")
    assert options("tuned")[option]
