"""Values beyond any memory or number type: one error that names the key, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from htsrl_cli.cli import preflight
from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.errors import ConfigError, UsageError

LARGE = "1_000_000_000_000"
SYNTHETIC = "env=synthetic/count"
CASES = {
    "total_steps": (SYNTHETIC, f"total_steps={'9' * 400}"),
    "total_steps of 2**63": (SYNTHETIC, f"total_steps={2**63}"),
    "seed": (SYNTHETIC, f"seed={2**63}"),
    "algo.learning_rate": (SYNTHETIC, "algo.learning_rate=1e308"),
    "algo.gamma": (SYNTHETIC, f"algo.gamma={'9' * 400}"),
    "actors.inference_batch": (SYNTHETIC, f"actors.inference_batch={LARGE}"),
    "actors.num_envs": (SYNTHETIC, f"actors.num_envs={LARGE}"),
    "actors.num_actors": (SYNTHETIC, f"actors.num_actors={LARGE}"),
    "learner.num_threads": (SYNTHETIC, f"learner.num_threads={LARGE}"),
    "network.hidden_sizes": (SYNTHETIC, f"network.hidden_sizes=[{LARGE}]"),
    "network.hidden_sizes of two": (SYNTHETIC, "network.hidden_sizes=[60000,60000]"),
    "env.frame_stack": ("env=atari/pong", f"env.frame_stack={LARGE}"),
    "env.screen_size": ("env=atari/pong", "env.screen_size=10_000_000"),
    "env.episode_length": (SYNTHETIC, f"env.episode_length={LARGE}"),
    "env.num_players": (SYNTHETIC, f"env.num_players={LARGE}"),
    "env.max_episode_steps": (
        "env=gym",
        "env.id=CartPole-v1",
        f"env.max_episode_steps={2**63}",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_value_that_is_too_large_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        to_train_config(Composer("train").job(CASES[name]))
    assert caught.value.key == name.split(maxsplit=1)[0]
    assert "\n" not in str(caught.value)
    assert "must be 1 or more" not in str(caught.value)


@pytest.mark.parametrize("env_id", [":", ":CartPole-v1", ".x:A", "../x:A", "x:", "a b:A", "1x:A"])
def test_an_id_without_a_module_is_refused(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["env=gym", f"env.id='{env_id}'"]
    with pytest.raises(ConfigError) as caught:
        preflight.check("train", Composer("train"), words, False)
    assert caught.value.key == "env.id"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["loop", "loop/run"])
def test_a_loop_of_links_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    words = [SYNTHETIC, f"hydra.run.dir={folder}"]
    with pytest.raises(UsageError, match=r"hydra\.run\.dir"):
        preflight.check("train", Composer("train"), words, False)
