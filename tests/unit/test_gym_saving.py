"""Tests of environments that save their own state: no replay, exactness, and the fall back."""

from __future__ import annotations

import math
import random
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

from htsrl_cli.envs.base import Array
from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.envs.gym.values import decode, encode
from htsrl_cli.envs.probe import restores_exactly
from htsrl_cli.envs.state import pack_state, unpack_state
from htsrl_cli.errors import CheckpointError, EnvError
from tests import sections
from tests.pages import DOCS

NAME = "Walk-v0"
LONG = 5000


class Walk(gymnasium.Env[Any, Any]):
    """A random walk whose steps come from a generator that no reset seeds.

    Args:
        get: replaces what `get_state` returns.
        restores: names of the attributes that `set_state` restores.
    """

    observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(2)
    num_steps = 0

    def __init__(
        self,
        get: Callable[[Any], Any] = lambda state: state,
        restores: tuple[str, ...] = ("position", "drift", "generator"),
    ) -> None:
        self.own = random.Random(7)
        self._get, self._restores = get, restores

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = np.zeros(2)
        self.drift = self.np_random.random()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        Walk.num_steps += 1
        self.position += [self.own.gauss(), self.drift * action + self.np_random.random()]
        return self._observe(), float(self.position[0]), False, False, {}

    def get_state(self) -> Any:
        return self._get(
            {"position": self.position, "drift": self.drift, "generator": self.own.getstate()}
        )

    def set_state(self, state: Any) -> None:
        for name in self._restores:
            if name == "generator":
                self.own.setstate(state[name])
            else:
                setattr(self, name, state[name])

    def _observe(self) -> Array:
        return self.position.astype(np.float32)


class Wrapped(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper without `get_state`, which doubles the reward of every third env step."""

    num_steps = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        obs, reward, *rest = super().step(action)
        return (obs, float(reward) * (1 + (self.num_steps % 3 == 0)), *rest)


class Seeded(CartPoleEnv):
    """A CartPole with the methods of its own state; only the reset seed makes it random."""

    def get_state(self) -> Any:
        return {"state": self.state, "beyond": self.steps_beyond_terminated}

    def set_state(self, state: Any) -> None:
        self.state, self.steps_beyond_terminated = state["state"], state["beyond"]


class Wrong(Seeded):
    """A CartPole whose `set_state` is not exact."""

    def set_state(self, state: Any) -> None:
        self.state = state["state"] * 1.01


class Positions(Seeded):
    """A CartPole whose `set_state` has other arguments."""

    def set_state(self, qpos: Any, qvel: Any) -> None:  # type: ignore[override]
        raise AssertionError("not called")


def _wrapped(**_: Any) -> Wrapped:
    return Wrapped(Walk())


gymnasium.register(NAME, f"{__name__}:Walk", max_episode_steps=LONG)
gymnasium.register("WrappedWalk-v0", _wrapped)
for kind in (Seeded, Wrong, Positions):
    gymnasium.register(f"{kind.__name__}-v0", f"{__name__}:{kind.__name__}", max_episode_steps=300)


def walk(name: str = NAME, **kwargs: Any) -> GymEnv:
    return GymEnv(sections.gym(name, kwargs=kwargs))


def play(env: GymEnv, num_steps: int) -> list[Any]:
    """Returns the results of `num_steps` env steps; resets the environment after an episode."""
    results: list[Any] = []
    for t in range(num_steps):
        obs, *rest = env.step(np.array([t % 2]))
        results.append((obs.tobytes(), rest))
        if rest[1] or rest[2]:
            results.append(env.reset(seed=t)[0].tobytes())
    return results


@pytest.mark.parametrize("num_steps", [0, 1, LONG - 40])
def test_own_state_restores_without_replaying(num_steps: int) -> None:
    env, restored = walk(), walk()
    obs, _ = env.reset(seed=3)
    for t in range(num_steps):
        obs, *_ = env.step(np.array([t % 2]))
    state = env.get_state()
    restored.reset(seed=9)
    before = Walk.num_steps
    assert restored.set_state(state).tobytes() == obs.tobytes()
    assert Walk.num_steps == before
    assert len(state) < 20_000
    # The time limit ends the episode in both, at the same env step and with the same return.
    assert play(env, 60) == play(restored, 60)


def test_restored_state_can_be_saved_again() -> None:
    env, restored, third = walk(), walk(), walk()
    env.reset(seed=3)
    play(env, 50)
    restored.set_state(env.get_state())
    assert restored.get_state() == env.get_state()
    play(restored, 10)
    third.set_state(restored.get_state())
    assert play(third, 30) == play(restored, 30)


@pytest.mark.parametrize(
    ("name", "kwargs", "exact", "why"),
    [
        (NAME, {}, True, None),
        ("Seeded-v0", {}, True, None),
        (NAME, {"restores": ("position", "drift")}, False, "continues differently"),
        (NAME, {"get": lambda state: state | {"position": None}}, False, "env step 30"),
        (NAME, {"get": lambda state: {"position": 0}}, False, "set_state() failed"),
        (NAME, {"get": lambda state: state | {"more": {1, 2}}}, False, "of type set"),
        (NAME, {"get": lambda state: 1 / 0}, False, "division by zero"),
        ("WrappedWalk-v0", {}, False, None),
    ],
)
def test_probe_chooses_snapshots_only_if_they_are_exact(
    name: str,
    kwargs: dict[str, Any],
    exact: bool,
    why: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert restores_exactly(sections.gym(name, kwargs=kwargs)) == exact
    assert ("actions are saved instead" in caplog.text) == (why is not None)
    assert (why or "") in caplog.text


def test_wrong_own_state_falls_back_to_an_exact_replay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert restores_exactly(sections.gym("Wrong-v0"))
    assert caplog.text.count("actions are saved instead") == 1
    env, restored = walk("Wrong-v0"), walk("Wrong-v0")
    env.reset(seed=0)
    obs = env.step(np.array([1]))[0]
    steps: list[int] = []
    restored.on_replayed_step = lambda: steps.append(0)
    assert restored.set_state(env.get_state()).tobytes() == obs.tobytes()
    assert steps == [0]


def test_methods_with_other_arguments_are_not_used() -> None:
    assert restores_exactly(sections.gym("Positions-v0"))


def test_a_replay_is_read_by_an_environment_with_its_own_state() -> None:
    replayed = GymEnv(sections.gym("Seeded-v0"), snaps=False)
    replayed.reset(seed=4)
    play(replayed, 7)
    env = walk("Seeded-v0")
    env.set_state(replayed.get_state())
    assert play(env, 40) == play(replayed, 40)


def test_a_snapshot_is_read_even_if_the_probe_rejects_new_snapshots() -> None:
    env, other = walk(), GymEnv(sections.gym(NAME), snaps=False)
    env.reset(seed=4)
    play(env, 20)
    other.set_state(env.get_state())
    play(env, 5)
    play(other, 5)
    # A replay from the reset would lack the actions before the snapshot.
    third = walk()
    third.set_state(other.get_state())
    assert play(third, 20) == play(env, 20)


def test_a_snapshot_is_refused_without_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    env = walk()
    env.reset(seed=0)
    state = env.get_state()
    monkeypatch.delattr(Walk, "set_state")
    with pytest.raises(
        CheckpointError, match=r"saved by get_state, but .* no such method"
    ) as caught:
        walk().set_state(state)
    assert "\n" not in str(caught.value)


def test_every_damaged_byte_is_refused() -> None:
    env = walk()
    env.reset(seed=0)
    state = env.get_state()
    for position in range(0, len(state), 97):
        damaged = bytearray(state)
        damaged[position] ^= 0xFF
        with pytest.raises(CheckpointError):
            env.set_state(bytes(damaged))
    with pytest.raises(CheckpointError):
        env.set_state(state[:-1])


def test_own_methods_that_fail_during_a_run_are_named() -> None:
    env = GymEnv(sections.gym(NAME, kwargs={"get": lambda state: {1}}), index=2, snaps=True)
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"environment 2 .*get_state\(\) failed(?s:.*)of type set"):
        env.get_state()


def test_the_guides_example_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = (DOCS / "guides" / "your-environment.md").read_text()
    module, _, _, methods = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    name = "catch_that_saves"
    module = module.replace('entry_point="catch:', f'entry_point="{name}:')
    inside = f"\n{textwrap.indent(methods, '    ')}\n    def _observe"
    (tmp_path / f"{name}.py").write_text(module.replace("\n    def _observe", inside))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    env = GymEnv(sections.gym(f"{name}:Catch-v0"))
    env.reset(seed=0)
    assert b'"snapshot"' in env.get_state()


# Values


def random_value(rng: random.Random, depth: int = 4) -> Any:
    leaves: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.getrandbits(200) - 2**199,
        lambda: rng.choice([rng.gauss(), math.inf, -0.0, 5e-324]),
        lambda: rng.choice(["", "a\n\u2713", "bytes", "\ud800"]),
        lambda: rng.randbytes(rng.randrange(5)),
        lambda: np.float32(rng.gauss()),
        lambda: np.int64(rng.randrange(9)),
        lambda: np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        lambda: np.zeros((0, 3), np.complex64),
        lambda: np.array(3.5),
        lambda: np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    ]
    if depth and rng.random() < 0.7:
        content = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        keys = [0, "0", (1, 2), None, 1.5, b"x"]
        form = rng.choice(["list", "tuple", "dict"])
        if form == "dict":
            return dict(zip(rng.sample(keys, len(content)), content, strict=True))
        return content if form == "list" else tuple(content)
    return rng.choice(leaves)()


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, np.ndarray | np.generic):
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert first.tobytes() == second.tobytes()
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, dict):
        assert_same(list(first.items()), list(second.items()))
    else:
        assert repr(first) == repr(second)


def test_values_survive_a_state_unchanged() -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = random_value(rng)
        blobs: list[bytes] = []
        packed = pack_state("test", {"value": encode(value, blobs)}, blobs)
        meta, read = unpack_state("test", packed)
        assert_same(value, decode(meta["value"], read))


@pytest.mark.parametrize(
    "value", [{1}, object(), lambda: 0, [np.array([None])], {"a": Path()}, range(3), 1j]
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="must consist of"):
        encode(value, [])


@pytest.mark.parametrize(
    ("encoded", "blobs"),
    [
        ({"array": 0}, [b"\x80\x04K\x01."]),
        ({"array": 0}, [b""]),
        ({"array": 1}, []),
        ({"bytes": "a"}, []),
        ({"pickle": 0}, [b""]),
        ({"a": 1, "b": 2}, []),
        ({"dict": [1]}, []),
        ({"tuple": 3}, []),
    ],
)
def test_damaged_values_raise_what_is_caught(encoded: Any, blobs: list[bytes]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        decode(encoded, blobs)
