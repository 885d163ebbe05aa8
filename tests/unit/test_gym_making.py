"""Mistakes in `env.id` and `env.kwargs`: one line each, which says what to type or to install."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import get_env_id

from htsrl_cli.envs.gym import making
from htsrl_cli.envs.gym.making import make
from htsrl_cli.errors import ConfigError
from tests import sections

MODULE_ENV = "gymnasium.envs.classic_control:CartPoleEnv"
MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Sized(CartPoleEnv):
    def __init__(self, size, *, speed, render_mode=None):
        super().__init__()


gymnasium.register("{name}Cart-v3", CartPoleEnv)
gymnasium.register("{name}Sized-v0", Sized, kwargs={{"speed": 1}})
"""


def remedy(env_id: str, **kwargs: Any) -> str:
    """Returns the remedy for a mistake; its error is one line and names the key."""
    with pytest.raises(ConfigError) as caught:
        make(sections.gym(env_id, kwargs=kwargs))
    assert "\n" not in str(caught.value)
    assert caught.value.key == ("env.kwargs" if "argument" in caught.value.remedy else "env.id")
    return caught.value.remedy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yields the working directory, which is not in `sys.path` yet, as for `htsrl`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def save(folder: Path, module: str) -> None:
    """Saves a module that registers `<module>Cart-v3` and `<module>Sized-v0`."""
    (folder / f"{module}.py").write_text(MODULE.format(name=module))


@pytest.mark.parametrize("place", ["{} ", " {}", "{}\t", "a b"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "my_module:Mine-v0", "ALE/Pong-v5"])
def test_spaces_are_refused_before_anything_is_built(env_id: str, place: str) -> None:
    from htsrl_cli.config.rules import check_rules

    config = sections.gym(place.format(env_id))
    with pytest.raises(ConfigError, match=r"^env\.id=.*without spaces$"):
        check_rules("env.", config, config.rules)


@pytest.mark.parametrize("name", ["random", "test", "time", "numpy", "gymnasium"])
def test_a_module_that_is_hidden_names_both_files(folder: Path, name: str) -> None:
    save(folder, name)
    found = getattr(__import__(name), "__file__", None) or "Python itself"
    text = remedy(f"{name}:{name}Cart-v3")
    assert f"from {found}, not from {folder / f'{name}.py'}" in text


def test_a_package_that_is_hidden_names_both_files(folder: Path) -> None:
    (folder / "random").mkdir()
    (folder / "random" / "__init__.py").touch()
    for env_id in ("random:Mine-v0", "random.envs:Mine-v0"):
        text = remedy(env_id)
        assert f"from {random.__file__}, not from {folder / 'random' / '__init__.py'}" in text


def test_the_folders_own_module_is_found(folder: Path) -> None:
    save(folder, "found_here")
    assert make(sections.gym("found_here:found_hereCart-v3")).spec is not None
    assert not any(module.startswith(os.sep) for module in sys.modules)


@pytest.mark.parametrize("module", ["typed.py", "./typed.py", "./typed", "typed/deep.py"])
def test_a_path_instead_of_a_module(folder: Path, module: str) -> None:
    save(folder, "typed")
    right = "typed.deep" if "deep" in module else "typed"
    assert remedy(f"{module}:A-v0").endswith(f"{right}:A-v0")


def test_a_namespace_that_a_package_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("Grids", "tests.unit.test_gym_making:register_grids", "gymnasium.envs")
    asked = []

    def entry_points(**words: str) -> list[EntryPoint]:
        asked.append(words)
        return [point] if words["name"] == "Grids" else []

    monkeypatch.setattr(making, "entry_points", entry_points)
    try:
        make(sections.gym("Grids/Cart-v3")).close()
        assert asked == [{"group": "gymnasium.envs", "name": "Grids"}]
        # The registered id is not registered again.
        make(sections.gym("Grids/Cart-v3")).close()
        assert len(asked) == 1
        assert remedy("Grids/Cart-v1") == "there is no such version: use Grids/Cart-v3"
    finally:
        del gymnasium.registry["Grids/Cart-v3"]


def register_grids() -> None:
    gymnasium.register("Grids/Cart-v3", MODULE_ENV)


def retired() -> list[str]:
    """Returns all ids of which Gymnasium has a newer version."""
    newest: dict[tuple[str | None, str], int] = {}
    for spec in gymnasium.registry.values():
        key = spec.namespace, spec.name
        newest[key] = max(newest.get(key, 0), spec.version or 0)
    return [get_env_id(*key, v) for key, last in newest.items() for v in range(last)]


@pytest.mark.parametrize("env_id", ["HalfCheetah-v2", "HalfCheetah-v3", "LunarLander-v2"])
def test_retired_ids_are_tested(env_id: str) -> None:
    assert env_id in retired()


@pytest.mark.slow
def test_every_retired_id_names_the_newest_version() -> None:
    remedies = {}
    for env_id in retired():
        with suppress(ConfigError):
            make(sections.gym(env_id)).close()
            continue
        remedies[env_id] = remedy(env_id)
    # Of an environment whose package is missing, Gymnasium does not say that it is retired.
    told = {i: text for i, text in remedies.items() if "pip install" not in text}
    # Other tests may have imported ale-py, which registers old ids of Atari games.
    told = {i: text for i, text in told.items() if "env=atari/" not in text}
    assert len(told) >= 5
    for env_id, text in told.items():
        assert f"use {env_id.rpartition('-v')[0]}-v" in text


def test_ids_that_do_not_exist(folder: Path) -> None:
    save(folder, "mine")
    assert remedy("mine:mineCart-v1") == "there is no such version: use mine:mineCart-v3"
    assert "registers mineSized-v0" in remedy("mine:Cart-v0")
    assert "the closest is CartPole-v1 " in remedy("cartpole-v1")
    assert "env.id=MODULE:FetchReach-v2" in remedy("FetchReach-v2")
    assert remedy("ALE/Pong-v1") == "for this game, use env=atari/pong"
    # A retired version is never the closest.
    assert "the closest is HalfCheetah-v5 " in remedy("HalfCheeta-v2")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "argsSized-v0 needs more arguments: +env.kwargs.size=VALUE"),
        ({"speed": 2}, "argsSized-v0 needs more arguments: +env.kwargs.size=VALUE"),
        ({"siz": 3}, "argsSized-v0 has no argument siz (did you mean size?)"),
        ({"size": 3, "colour": 1}, "argsSized-v0 has no argument colour; it has: size, speed"),
    ],
)
def test_arguments_that_do_not_fit(folder: Path, kwargs: dict[str, Any], message: str) -> None:
    save(folder, "args")
    assert remedy("args:argsSized-v0", **kwargs).startswith(message)


def test_arguments_of_gymnasiums_own() -> None:
    assert remedy("Pendulum-v1", gravity=9.81).endswith("it has: render_mode, g")


@pytest.mark.parametrize(
    ("env_id", "package", "extra"),
    [("LunarLander-v3", "Box2D", "box2d"), ("HalfCheetah-v5", "mujoco", "mujoco")],
)
def test_a_missing_simulator_names_the_extra(
    env_id: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(f"gymnasium.envs.{extra}"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert (
        remedy(env_id) == f"needs a package that is not installed: pip install 'gymnasium[{extra}]'"
    )
