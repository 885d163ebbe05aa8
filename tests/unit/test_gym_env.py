"""Tests of the Gymnasium adapter: spaces, mistakes, and replays."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from htsrl_cli.envs.base import ActionSpec, Array
from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.envs.probe import restores_exactly
from htsrl_cli.errors import CheckpointError, ConfigError
from tests import sections


class Echo(gymnasium.Env[Any, Any]):
    """An environment that observes one random number in all entries and ends after 12 env steps.

    It records the last action.
    """

    def __init__(self, obs: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.observation_space = obs
        self.action_space = action
        self.taken: Any = None
        self.num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.taken = action
        self.num_steps += 1
        return self._observe(), 0.5, self.num_steps == 12, False, {"ignored": 1}

    def _observe(self) -> Array:
        shape, dtype = self.observation_space.shape, self.observation_space.dtype
        assert shape is not None
        return np.asarray(self.np_random.integers(100, size=shape)).astype(dtype)


class Forgetful(Echo):
    """An environment that keeps a count of its resets from one episode to the next."""

    num_resets = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        self.num_resets += 1
        return super().reset(seed=seed)

    def _observe(self) -> Array:
        return super()._observe() + np.float32(self.num_resets)


VECTOR = spaces.Box(-1e3, 1e3, (2,), np.float32)
COIN = spaces.Discrete(2)

gymnasium.register("Echo-v0", entry_point=f"{__name__}:Echo")
gymnasium.register("Forgetful-v0", entry_point=f"{__name__}:Forgetful")


def echo(obs: spaces.Space[Any] = VECTOR, action: spaces.Space[Any] = COIN) -> GymEnv:
    return GymEnv(sections.gym("Echo-v0", kwargs={"obs": obs, "action": action}))


def inner(env: GymEnv) -> Any:
    return env._env.unwrapped


# Observations


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), (3,), "float32"),
        (spaces.Box(0, 999, (2, 3), np.int64), (2, 3, 1), "float32"),
        (spaces.Box(0, 1, (), np.float32), (1,), "float32"),
        (image(128), (128,), "float32"),
        (image(40, 50), (40, 50, 1), "uint8"),
        (image(40, 50, 3), (40, 50, 3), "uint8"),
        (image(3, 40, 50), (40, 50, 3), "uint8"),
    ],
)
def test_observation_spaces(space: spaces.Box, shape: tuple[int, ...], dtype: str) -> None:
    env = echo(space)
    assert (env.env_spec.obs_shape, env.env_spec.obs_dtype) == (shape, dtype)
    first, _ = env.reset(seed=0)
    second = env.step(np.array([0]))[0]
    for obs in (first, second):
        assert (obs.shape, obs.dtype) == (shape, np.dtype(dtype))


def test_channels_first_images_are_transposed() -> None:
    env = echo(image(3, 40, 50))
    obs, _ = env.reset(seed=0)
    raw = np.random.default_rng(0).integers(100, size=(3, 40, 50))
    assert obs[5, 7].tolist() == raw[:, 5, 7].tolist()


# Actions


def test_discrete_action_starts_where_the_space_does() -> None:
    env = echo(action=spaces.Discrete(3, start=5))
    assert env.env_spec.actions == ActionSpec("categorical", sizes=(3,))
    env.reset(seed=0)
    env.step(np.array([2]))
    assert inner(env).taken == 7


def test_multi_discrete_actions_keep_their_shape_and_start() -> None:
    env = echo(
        action=spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [0, -1]]))
    )
    assert env.env_spec.actions == ActionSpec("categorical", sizes=(2, 3, 4, 5))
    env.reset(seed=0)
    env.step(np.array([1, 2, 3, 4]))
    assert inner(env).taken.tolist() == [[1, 3], [3, 3]]


def test_box_actions_are_clipped_to_their_bounds() -> None:
    low, high = np.array([[-1.0], [-np.inf]]), np.array([[0.5], [np.inf]])
    env = echo(action=spaces.Box(low, high, dtype=np.float64))
    assert env.env_spec.actions == ActionSpec("gaussian", low=(-1.0, -np.inf), high=(1.0, np.inf))
    env.reset(seed=0)
    env.step(np.array([7.0, 7.0], np.float32))
    assert inner(env).taken.tolist() == [[0.5], [7.0]]


# Unsupported environments


@pytest.mark.parametrize(
    ("obs", "action", "message"),
    [
        (spaces.Text(3), COIN, "observation_space = Text"),
        (image(2, 3, 40, 50), COIN, "observation_space = Box"),
        (VECTOR, spaces.Text(3), "action_space = Text"),
        (VECTOR, spaces.Box(0, 5, (2,), np.int64), "action_space = Box"),
    ],
)
def test_other_spaces_are_refused_in_one_line(
    obs: spaces.Space[Any], action: spaces.Space[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"env\.id=Echo-v0: its {message}") as caught:
        echo(obs, action)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("CartPole-v7", "CartPole-v1"),
        ("no spaces", "env.id"),
        ("no_such_module:Echo-v0", "no module no_such_module"),
    ],
)
def test_unknown_ids_say_what_to_do(env_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        GymEnv(sections.gym(env_id))
    assert caught.value.key == "env.id"
    assert "\n" not in str(caught.value)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    with pytest.raises(ConfigError, match="install") as caught:
        GymEnv(sections.gym("LunarLander-v3"))
    assert "\n" not in str(caught.value)


def test_unknown_keyword_argument() -> None:
    with pytest.raises(ConfigError, match=r"env\.kwargs=.*gravitation"):
        GymEnv(sections.gym("CartPole-v1", kwargs={"gravitation": 1}))


def test_old_version_does_not_warn(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GymEnv(sections.gym("CartPole-v0")).close()
    assert capfd.readouterr() == ("", "")


# Modules


MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Mine-v0", entry_point=CartPoleEnv)
"""


def test_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_registering_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    env = GymEnv(sections.gym("my_registering_module:Mine-v0"))
    assert env.env_spec.actions.sizes == (2,)


def test_module_that_lacks_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_importing_module.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ConfigError, match="needs the package no_such_package"):
        GymEnv(sections.gym("my_importing_module:Mine-v0"))


# Episodes


def test_time_limit_truncates_and_the_raw_return_is_told() -> None:
    env = GymEnv(sections.gym("Pendulum-v1", max_episode_steps=3))
    env.reset(seed=0)
    total = 0.0
    for t in range(3):
        _, reward, terminated, truncated, info = env.step(np.array([0.5], np.float32))
        total += reward
        assert (terminated, truncated) == (False, t == 2)
        assert ("episode" in info) == (t == 2)
    assert info == {"episode": {"r": total, "l": 3}}


def test_termination_ends_the_episode() -> None:
    env = echo()
    env.reset(seed=0)
    ends = [env.step(np.array([1]))[2] for _ in range(12)]
    assert ends == [False] * 11 + [True]


# Replays

CHILD = """
import sys
from pathlib import Path
import numpy as np
from htsrl_cli.envs.gym.environment import GymEnv
from tests import sections
env = GymEnv(sections.gym(sys.argv[1]))
digest = [env.set_state(Path(sys.argv[2]).read_bytes()).tobytes()]
for _ in range(5):
    obs, *rest = env.step(np.ones(env.env_spec.actions.num_dims, env.env_spec.actions.dtype))
    digest.append((obs.tobytes(), rest))
print(digest)
"""


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_another_process_goes_on_alike(env_id: str, tmp_path: Path) -> None:
    env = GymEnv(sections.gym(env_id))
    action = np.ones(env.env_spec.actions.num_dims, env.env_spec.actions.dtype)
    env.reset(seed=1)
    env.reset(seed=2)
    for t in range(4):
        obs, *_ = env.step(action * (t % 2))
    path = tmp_path / "state"
    path.write_bytes(env.get_state())
    command = [sys.executable, "-c", CHILD, env_id, str(path)]
    root = Path(__file__).parents[2]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    expected: list[Any] = [obs.tobytes()]
    for _ in range(5):
        obs, *rest = env.step(action)
        expected.append((obs.tobytes(), rest))
    assert child.stdout == f"{expected}\n"


@pytest.mark.parametrize("num_steps", [0, 5, 12])
def test_replay_restores_the_environments_generator_and_counts(num_steps: int) -> None:
    # Has MultiDiscrete actions. The 12 env steps are a whole episode, just before the next reset.
    space = spaces.MultiDiscrete([3, 4])
    env, restored = echo(action=space), echo(action=space)
    obs, _ = env.reset(seed=3)
    for _ in range(num_steps):
        obs, *_ = env.step(np.array([2, 3]))
    restored.reset(seed=8)
    assert (restored.set_state(env.get_state()) == obs).all()
    if num_steps:
        assert inner(restored).taken.tolist() == [2, 3]
    if num_steps == 5:
        for _ in range(7):
            obs, *rest = env.step(np.array([1, 1]))
            other, *other_rest = restored.step(np.array([1, 1]))
            assert (obs == other).all()
            assert rest == other_rest
        assert rest[-1] == {"episode": {"r": 6.0, "l": 12}}


def test_damaged_and_foreign_states_are_refused() -> None:
    env = GymEnv(sections.gym("CartPole-v1"))
    env.reset(seed=0)
    state = env.get_state()
    for damaged in (b"", state[:-1], state[:-1] + b"?"):
        with pytest.raises(CheckpointError):
            env.set_state(damaged)
    with pytest.raises(CheckpointError, match=r"id=CartPole-v1, not for id=Pendulum-v1"):
        GymEnv(sections.gym("Pendulum-v1")).set_state(state)


def test_episode_that_ends_earlier_begins_again() -> None:
    env, shorter = (
        GymEnv(sections.gym("Pendulum-v1", max_episode_steps=limit)) for limit in (9, 3)
    )
    env.reset(seed=0)
    for _ in range(5):
        env.step(np.zeros(1, np.float32))
    replayed: list[int] = []
    shorter.on_replayed_step = lambda: replayed.append(0)
    obs = shorter.set_state(env.get_state())
    assert shorter.begins_again
    assert len(replayed) == 3
    assert np.array_equal(obs, shorter.reset(seed=0)[0])
    env.set_state(env.get_state())
    assert not env.begins_again


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_probe_finds_that_seeded_environments_restore(env_id: str) -> None:
    assert restores_exactly(sections.gym(env_id))


@pytest.mark.parametrize(("env_id", "restores"), [("Echo-v0", True), ("Forgetful-v0", False)])
def test_probe_finds_what_survives_a_reset(env_id: str, restores: bool) -> None:
    assert (
        restores_exactly(sections.gym(env_id, kwargs={"obs": VECTOR, "action": COIN})) == restores
    )
