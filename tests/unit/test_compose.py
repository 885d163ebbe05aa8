"""Tests of composition, strict types, and the keys that hashes and resumes compare."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.cli.files import configs_dir
from htsrl_cli.cli.job import _resumed_config, merge
from htsrl_cli.config import auto
from htsrl_cli.config.identity import (
    CHANGES_NO_RESULT,
    changes_no_result,
    config_sha256,
    equivalent,
)
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.plain import flatten, to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.envs.atari.config import AtariConfig
from htsrl_cli.errors import ConfigError
from tests import sections


def train_config(*words: str) -> TrainConfig:
    """Composes the configuration of `htsrl train WORDS ...`."""
    return to_train_config(Composer("train").job(words))


def plain_with(config: TrainConfig, key: str, value: object) -> dict[str, Any]:
    """Returns the plain configuration with one dotted key changed."""
    plain = to_plain(config)
    *sections, last = key.split(".")
    section = plain
    for name in sections:
        section = section[name]
    assert last in section
    section[last] = value
    return plain


def test_defaults() -> None:
    config = train_config()
    assert isinstance(config.env, AtariConfig)
    assert config.env.game == "pong"
    assert config.algo == sections.ppo()
    assert config.runner.name == "hts"


def test_yaml_values_become_the_declared_types() -> None:
    words = ("network.hidden_sizes=[32,16]", "network.linear_kernel=product")
    config = train_config("total_steps=1e6", "algo.learning_rate=1", *words)
    assert (type(config.total_steps), config.total_steps) == (int, 1_000_000)
    assert (type(config.algo.learning_rate), config.algo.learning_rate) == (float, 1.0)
    assert config.network == sections.network(hidden_sizes=(32, 16))


def test_gym_keyword_arguments_are_kept_as_they_are() -> None:
    config = train_config("env=gym", "env.id=A-v0", "+env.kwargs={render_mode:null,sizes:[1,2]}")
    assert config.env == sections.gym("A-v0", kwargs={"render_mode": None, "sizes": [1, 2]})


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["{}={{g: 9.81, size: 3}}"], "+{}.g=9.81 +{}.size=3"),
        (["{}={{g:9.81}}"], "+{}.g=9.81"),
        (['{}={{"g": 9.81}}'], "+{}.NAME=VALUE"),
        (["{}=g=9.81"], "+{}.NAME=VALUE"),
        (["+{}=g=9.81"], "+{}.NAME=VALUE"),
        # What a shell makes of {a:1,b:2}.
        (["{}=a:1", "{}=b:2"], "+{}."),
        (["{}=3"], "+{}."),
        (["{}.g=9.81"], "write +{}.g=9.81"),
    ],
)
@pytest.mark.parametrize(
    ("key", "chosen"),
    [
        ("env.kwargs", ["env=gym", "env.id=A-v0"]),
        ("network.kwargs", ["network.name=a:B"]),
    ],
)
def test_arguments_typed_as_one_value_are_explained(
    key: str, chosen: list[str], words: list[str], remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config(*chosen, *(word.format(key) for word in words))
    assert caught.value.key.lstrip("+").startswith(key)
    assert remedy.replace("{}", key) in caught.value.remedy


@pytest.mark.parametrize("preset", Composer("train").group_options("experiment"))
def test_presets_are_valid(preset: str) -> None:
    assert train_config(f"experiment={preset}").algo.name in preset.split("_")


@pytest.mark.parametrize(
    "word",
    [
        f"{group}={option}"
        for group in ("launcher", "sweeper")
        for option in Composer("train").group_options(group)
    ],
)
def test_plugins_are_those_that_the_tests_run_with(word: str) -> None:
    assert Composer("train").job([word]).hydra.launcher._target_


def test_paper_preset() -> None:
    config = train_config("experiment=atari_a2c", "env=atari/pong")
    assert config.algo == sections.a2c(
        learning_rate=7e-4,
        gamma=0.99,
        entropy_coef=0.01,
        value_coef=0.5,
        max_grad_norm=0.5,
        rmsprop_alpha=0.99,
        rmsprop_eps=1e-5,
    )
    assert (config.actors.num_envs, config.runner.sync_interval) == (16, 5)


def test_football_preset() -> None:
    config = train_config("experiment=football_ppo", "env=football/academy_corner")
    assert config.env == sections.football("academy_corner")
    assert config.algo == sections.ppo(
        learning_rate=3.43e-4,
        gamma=0.993,
        gae_lambda=0.95,
        clip_coef=0.08,
        clip_value_loss=True,
        update_epochs=2,
        num_minibatches=8,
        entropy_coef=0.003,
        value_coef=0.5,
        max_grad_norm=0.64,
        policies="independent",
    )
    assert (config.actors.num_envs, config.runner.sync_interval) == (16, 128)


def test_command_line_wins_over_a_preset() -> None:
    config = train_config("experiment=atari_a2c", "algo.learning_rate=0.5", "seed=9")
    assert (config.algo.learning_rate, config.seed) == (0.5, 9)


def test_every_option_of_every_group_is_found() -> None:
    composer = Composer("train")
    for group in ("env", "algo", "network", "actors", "learner", "runner", "experiment"):
        found = {f"{group}/{name}.yaml" for name in composer.group_options(group)}
        folder = configs_dir()
        assert found == {
            path.relative_to(folder).as_posix() for path in (folder / group).rglob("*.yaml")
        }


def test_plain_values_survive_json() -> None:
    config = train_config("env=gym", "env.id=CartPole-v1", "env.max_episode_steps=7")
    assert load_train_config(json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "1"),
        ("seed", True),
        ("seed", 1.5),
        ("seed", float("inf")),
        ("algo.gamma", None),
        ("algo.gamma", "0.9"),
        ("algo.anneal_learning_rate", 1),
        ("network.hidden_sizes", [64, "64"]),
        ("network.hidden_sizes", 64),
        ("runner.name", 3),
        ("actors", 4),
    ],
)
def test_wrong_types(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load_train_config(plain_with(train_config(), key, value))
    assert caught.value.key == key


def test_missing_and_unknown_keys() -> None:
    plain = to_plain(train_config())
    with pytest.raises(ConfigError, match=r"^env\.game=null: .*env\.game="):
        load_train_config(plain | {"env": {"kind": "atari", "step_timeout_s": 60.0}})
    with pytest.raises(ConfigError, match=r"^runer=1: .*did you mean runner\?"):
        load_train_config(plain | {"runer": 1})
    with pytest.raises(ConfigError, match=r"^algo\.name=pppo: .*did you mean ppo\?"):
        load_train_config(plain | {"algo": {"name": "pppo"}})


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "env.frame_skip",
        "algo.gamma",
        "network.hidden_sizes",
        "actors.num_executors",
        "learner.micro_batch",
        "runner.sync_interval",
        "checkpoint.keep",
        "log.mlflow",
        "eval.targets",
        "network",
    ],
)
def test_a_missing_key_is_refused_with_its_name(key: str) -> None:
    # Only the YAML files have default values; the schemas have none.
    plain = to_plain(train_config())
    section, _, name = key.rpartition(".")
    del (plain[section] if section else plain)[name]
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(key)}=null: .*{re.escape(key)}="
    ) as caught:
        load_train_config(plain)
    assert caught.value.key == key


def test_sweep_gives_every_combination() -> None:
    words = ["seed=1,2", "algo=ppo,a2c", "algo.gamma=choice(0.9,0.99)", "hydra.sweep.dir=d"]
    master, jobs = Composer("train").sweep(words)
    assert master.hydra.sweep.dir == "d"
    chosen = [to_train_config(job) for job in jobs]
    assert {(c.seed, c.algo.name, c.algo.gamma) for c in chosen} == {
        (seed, name, gamma) for seed in (1, 2) for name in ("ppo", "a2c") for gamma in (0.9, 0.99)
    }
    assert [job.hydra.job.num for job in jobs] == list(range(8))


def test_search_is_tried_with_each_option_of_its_groups() -> None:
    words = [
        "sweeper=optuna",
        "env=gym",
        "env.id=choice(CartPole-v1,Acrobot-v1)",
        "algo=choice(ppo,a2c)",
        "algo.gamma=tag(log,interval(0.1,1))",
        "seed=range(5,9)",
    ]
    configs = [to_train_config(job) for job in Composer("train").sweep(words)[1]]
    assert [config.algo.name for config in configs] == ["ppo", "a2c"]
    for config in configs:
        assert (config.env, config.seed) == (sections.gym("CartPole-v1"), 1)


def test_hash_ignores_what_changes_no_result() -> None:
    config = train_config()
    same = train_config(
        "runner=serial",
        "actors.num_executors=4",
        "actors.num_actors=2",
        "actors.host=thread",
        "actors.timeout_s=1",
        "env.step_timeout_s=1",
        "learner.num_threads=1",
        "runner.stop_grace_s=0",
        "checkpoint.keep=9",
        "log.interval=1",
    )
    assert config_sha256(same) == config_sha256(config)


def test_hash_sees_every_other_key() -> None:
    config = train_config()
    hashes = {config_sha256(config)}
    keys = [key for key, _ in flatten(to_plain(config))]
    counted = [key for key in keys if not key.startswith(CHANGES_NO_RESULT)]
    assert 20 < len(counted) < len(keys)
    for key in set(counted) - {"env.kind", "algo.name", "network.name", "network.hidden_sizes"}:
        section, _, name = key.rpartition(".")
        owner: Any = getattr(config, section) if section else config
        value = getattr(owner, name)
        other = f"{value}x" if isinstance(value, str) else value + 1
        changed = replace(owner, **{name: other})
        hashes.add(config_sha256(replace(config, **{section: changed}) if section else changed))
    assert len(hashes) == len(counted) - 4 + 1


# Keys that are younger than the others, and another value of each.
YOUNGER = {
    "learner.num_shards": "2",
    "network.activation": "relu",
    "network.memory": "lstm",
    "network.memory_size": "128",
    "network.separate_value": "false",
    "algo.squash": "tanh",
    "env.ignore_observations": "[x]",
    "env.mask_actions": "true",
    "env.normalize_obs": "true",
    "env.normalize_reward": "true",
}


@pytest.mark.parametrize("network", ["auto", "mlp"])
def test_a_younger_key_is_hashed_only_with_a_new_value(network: str) -> None:
    words = (f"network={network}", "env=gym", "env.id=CartPole-v1")
    config = train_config(*words)
    values = dict(flatten(to_plain(config)))
    older = {
        key: equivalent(key, value)
        for key, value in values.items()
        if not changes_no_result(key) and key not in YOUNGER
    }
    text = json.dumps(older, sort_keys=True, separators=(",", ":"))
    hashes = {hashlib.sha256(text.encode()).hexdigest(), config_sha256(config)}
    assert len(hashes) == 1
    for key, value in YOUNGER.items():
        hashes.add(config_sha256(train_config(*words, f"{key}={value}")))
    assert len(hashes) == 1 + len(YOUNGER)


def test_keys_that_change_no_result_exist() -> None:
    configs = [to_plain(train_config(f"runner={name}", "algo=ppo")) for name in ("hts", "async")]
    keys = {key for config in configs for key, _ in flatten(config)}
    keys |= {field.name for field in fields(TrainConfig)}
    assert set(CHANGES_NO_RESULT) <= keys


STORED = {"seed": 1, "total_steps": 100, "runner": {"name": "hts"}, "log": {"interval": 5}}


def test_resume_takes_only_what_was_typed() -> None:
    asked = {"seed": 2, "total_steps": 50, "runner": {"name": "serial"}, "log": {"interval": 7}}
    assert merge(STORED, asked, set()) == STORED
    merged = merge(STORED, asked, {"log.interval", "runner"})
    assert merged == STORED | {"runner": {"name": "serial"}, "log": {"interval": 7}}
    with pytest.raises(ConfigError, match=r"^seed=2: the run has 1"):
        merge(STORED, asked, {"seed"})


def test_resume_with_a_preset_compares_every_key() -> None:
    assert merge(STORED, STORED | {"total_steps": 101}, {"experiment"})["total_steps"] == 101
    with pytest.raises(ConfigError, match=r"^seed=2: "):
        merge(STORED, STORED | {"seed": 2}, {"experiment"})


def test_what_auto_came_to_stays_with_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # This machine would choose other values. A preset counts as if every key had been typed.
    words = ["experiment=atari_ppo", "learner.precision=auto", "actors.precision=auto"]
    begun = train_config(*words)
    others: dict[str, int | str] = {"inference_batch": 77, "precision": "other", "num_actors": 7}
    for key, other in others.items():
        choice = auto.Choice(partial(lambda value, _: value, other), placeholder=other)
        monkeypatch.setitem(auto.CHOICES, ("actors", key), choice)
    job = Composer("train").job(words)
    resumed = _resumed_config(job, words, Path("run.ckpt"), to_plain(begun))
    assert resumed == replace(begun, actors=replace(begun.actors, num_actors=7))


def test_resume_raises_total_steps_only() -> None:
    assert merge(STORED, STORED | {"total_steps": 101}, {"total_steps"})["total_steps"] == 101
    with pytest.raises(ConfigError, match=r"^total_steps=99: "):
        merge(STORED, STORED | {"total_steps": 99}, {"total_steps"})


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("algo.learning_rat", "algo.learning_rate"),
        ("learning_rate", "algo.learning_rate"),
        ("learnign_rate", "algo.learning_rate"),
        ("seeed", "seed"),
    ],
)
def test_suggestions(word: str, suggestion: str) -> None:
    assert did_you_mean(word, ["algo.learning_rate", "seed"]) == f" (did you mean {suggestion}?)"


def test_no_suggestion_is_better_than_a_wrong_one() -> None:
    assert did_you_mean("zzz", ["algo.learning_rate", "seed"]) == ""
    assert did_you_mean("atari/nothing", ["atari/boxing"]) == ""


def test_a_kind_that_the_chosen_option_has_is_accepted(tmp_path: Path) -> None:
    assert train_config("env.kind=atari", "algo.name=ppo", "runner.name=hts").env.kind == "atari"
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "mine.yaml").write_text("defaults: [mlp]\nhidden_sizes: [8]\n")
    composer = Composer("train", str(tmp_path))
    words = ["env=gym", "env.id=CartPole-v1", "network=mine", "network.name=mlp"]
    assert list(composer.job(words).network.hidden_sizes) == [8]
    with pytest.raises(ConfigError, match=r"^network\.name=nature_cnn: write it as network="):
        composer.job([*words[:-1], "network.name=nature_cnn"])
