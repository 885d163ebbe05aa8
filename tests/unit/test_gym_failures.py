"""Faults of a Gymnasium environment: each is named where it enters, with its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import EnvError
from tests import sections

STEP: tuple[Any, ...] = (np.zeros(3, np.float32), 1.0, False, False, {})
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
SCREEN = spaces.Box(0, 255, (4, 4), np.uint8)


class Scripted(gymnasium.Env[Any, Any]):
    """An environment whose `reset` and `step` return the given values, or raise them."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Box, reset: Any, step: Any, close: Any = None) -> None:
        self.observation_space = space
        self._reset, self._step, self._close = reset, step, close

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return _returned(self._reset)

    def step(self, action: Any) -> Any:
        return _returned(self._step)

    def close(self) -> None:
        _returned(self._close)


def _returned(value: Any) -> Any:
    if isinstance(value, BaseException):
        raise value
    return value


def _build(**kwargs: Any) -> Scripted:
    return Scripted(**kwargs)


gymnasium.register("Scripted-v0", _build, disable_env_checker=True, order_enforce=False)


def scripted(
    space: spaces.Box = VECTOR, reset: Any = None, step: Any = STEP, **more: Any
) -> GymEnv:
    first = (np.zeros(space.shape, space.dtype), {}) if reset is None else reset
    kwargs = {"space": space, "reset": first, "step": step, **more}
    return GymEnv(sections.gym("Scripted-v0", kwargs=kwargs), index=3)


def observed(obs: Any) -> Any:
    return (obs, *STEP[1:])


def rewarded(reward: Any) -> Any:
    return (STEP[0], reward, *STEP[2:])


@pytest.mark.parametrize(
    ("space", "result", "message"),
    [
        (VECTOR, observed([0.5]), r"shape \(1,\), but the observation space has \(3,\)"),
        (VECTOR, observed(0.5), r"shape \(\), but the observation space has \(3,\)"),
        (VECTOR, observed([0.0, np.nan, 0.0]), "finite in float32, but contains nan"),
        (VECTOR, observed([0.0, 1e200, 0.0]), r"finite in float32, but contains 1e\+200"),
        (VECTOR, observed(["a", "b", "c"]), "could not convert string to float"),
        (
            SCREEN,
            observed(np.full((4, 4), 0.5)),
            "integers from 0 to 255.* float64 from 0.5 to 0.5",
        ),
        (SCREEN, observed(np.full((4, 4), 300)), "integers from 0 to 255.* int64 from 300 to 300"),
        (SCREEN, observed(np.full((4, 4), -1)), "integers from 0 to 255.* int64 from -1 to -1"),
        (SCREEN, observed(np.zeros((4, 4, 1), np.uint8)), r"shape \(4, 4, 1\)"),
        (VECTOR, rewarded(np.array([1.0, 2.0])), "the reward must be a number, but is array"),
        (VECTOR, rewarded(None), "the reward must be a number, but is None"),
        (VECTOR, rewarded(np.nan), "the reward must be finite, but is nan"),
        (VECTOR, rewarded(-np.inf), "the reward must be finite, but is -inf"),
        (VECTOR, (STEP[0], 1.0, True, {}), r"step\(\) must return .* a tuple of 4"),
        (VECTOR, STEP[0], r"step\(\) must return .* a ndarray"),
        (VECTOR, ZeroDivisionError("here"), r"test_gym_failures.py(?s:.*)ZeroDivisionError: here"),
        (VECTOR, SystemExit(1), "SystemExit: 1"),
        (VECTOR, KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_faulty_step_is_named(space: spaces.Box, result: Any, message: str) -> None:
    env = scripted(space, step=result)
    env.reset(seed=17)
    where = r"environment 3 \(env.id=Scripted-v0\): env step 0 after reset\(seed=17\) failed\n"
    with pytest.raises(EnvError, match=f"{where}(?s:.*){message}"):
        env.step(np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros(3, np.float32), r"reset\(\) must return \(observation, info\), but .* a ndarray"),
        (([0.0], {}), r"shape \(1,\)"),
        (RuntimeError("no seed"), "RuntimeError: no seed"),
    ],
)
def test_a_faulty_reset_is_named(result: Any, message: str) -> None:
    env = scripted(reset=result)
    with pytest.raises(EnvError, match=rf"reset\(seed=5\) failed\n(?s:.*){message}"):
        env.reset(seed=5)


def test_numbers_that_fit_are_accepted() -> None:
    env = scripted(step=observed([1, 2, 3]))
    env.reset(seed=0)
    assert env.step(np.zeros(1, np.int64))[0].tolist() == [1, 2, 3]
    env = scripted(SCREEN, step=observed(np.full((4, 4), 255)))
    env.reset(seed=0)
    assert env.step(np.zeros(1, np.int64))[0].max() == 255
    env = scripted(step=rewarded(np.float64(2)))
    env.reset(seed=0)
    assert env.step(np.zeros(1, np.int64))[1] == 2.0
    huge = scripted(step=observed(np.full(3, 3e38)))
    huge.reset(seed=0)
    assert np.isfinite(huge.step(np.zeros(1, np.int64))[0]).all()


def test_close_that_raises_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    scripted(close=OSError("lost")).close()
    assert "close() failed" in caplog.text
    assert "OSError: lost" in caplog.text


MODULES = {
    "syntax": ("class A(:\n    pass\n", "SyntaxError", "line 1"),
    "import": ("import numpy\nnumpy.nothing\n", "AttributeError", "line 2, in <module>"),
    "exit": ("import sys\nsys.exit('no licence')\n", "SystemExit: no licence", "line 2"),
    "constructor": (
        "import gymnasium\n\nclass A(gymnasium.Env):\n"
        "    def __init__(self, size=2):\n        len(size)\n\n"
        "gymnasium.register('A-v0', A)\n",
        "TypeError: object of type 'int' has no len()",
        "line 5, in __init__",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_fails_is_shown_with_its_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, error, place = MODULES[name]
    (tmp_path / f"faulty_{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(EnvError, match="its construction failed") as caught:
        make_env(sections.gym(f"faulty_{name}:A-v0"), 0)
    lines = str(caught.value).splitlines()
    assert len(lines) < 8
    assert error in lines[-1]
    assert place in str(caught.value)
