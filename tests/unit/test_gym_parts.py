"""Tests of spaces with parts, `Dict` and `Tuple`, and of the discrete spaces inside them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten

from htsrl_cli.envs.gym.actions import action_form
from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.envs.gym.observations import obs_form
from htsrl_cli.envs.probe import random_action, restores_exactly
from htsrl_cli.errors import ConfigError, EnvError
from tests import sections

GYM = sections.gym("Any-v0")
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
PIXELS = spaces.Box(0, 255, (4, 5, 3), np.uint8)
CAMERA = spaces.Box(0, 255, (3, 40, 50), np.uint8)

Space = spaces.Space[Any]


class Sampled(gymnasium.Env[Any, Any]):
    """An environment with random observations of any space, which ends after 12 env steps."""

    def __init__(self, obs: Space, action: Space) -> None:
        self.observation_space = obs
        self.action_space = action

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.num_steps += 1
        flat: Any = flatten(self.action_space, action)
        return self._observe(), float(flat.sum()), self.num_steps == 12, False, {}

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()


gymnasium.register("Parts-v0", f"{__name__}:Sampled")


def env_of(obs: Space, action: Space) -> GymEnv:
    return GymEnv(sections.gym("Parts-v0", kwargs={"obs": obs, "action": action}))


# Chosen spaces


def test_each_part_is_divided_as_it_would_be_alone() -> None:
    space = spaces.Dict(
        counts=spaces.Box(0, 8, (2,), np.int64), pixels=PIXELS, speed=spaces.Box(-9.0, 9.0, (1,))
    )
    raw = {
        "counts": np.array([4, 8]),
        "pixels": np.full((4, 5, 3), 51, np.uint8),
        "speed": np.array([-4.5], np.float32),
    }
    form = obs_form(GYM, space)
    expected = [0.5, 1.0, *[51 / 255] * 60, -4.5]
    np.testing.assert_allclose(form.convert(raw), expected, rtol=1e-6)
    assert form.note == (
        'observation_space["counts"]: observations are divided by the bounds of '
        'Box(0, 8, (2,), int64); observation_space["pixels"]: observations are divided by 255'
    )
    unscaled = obs_form(sections.gym("Any-v0", scale_observations=False), space)
    expected = [4, 8, *[51 / 255] * 60, -4.5]
    np.testing.assert_allclose(unscaled.convert(raw), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "space", [spaces.Dict(camera=CAMERA), spaces.Tuple([spaces.Dict(a=spaces.Tuple([CAMERA]))])]
)
def test_an_image_alone_stays_an_image(space: Space) -> None:
    form = obs_form(GYM, space)
    assert (form.shape, form.dtype, form.obs_max) == ((40, 50, 3), "uint8", 255)
    image = CAMERA.sample()
    raw = {"camera": image} if isinstance(space, spaces.Dict) else ({"a": (image,)},)
    np.testing.assert_array_equal(form.convert(raw), np.moveaxis(image, 0, -1))


def test_binary_grids_are_images() -> None:
    grid = spaces.MultiBinary([10, 10, 4])
    form = obs_form(GYM, grid)
    assert (form.shape, form.dtype, form.obs_max, form.note) == ((10, 10, 4), "uint8", 1, "")
    raw = grid.sample()
    np.testing.assert_array_equal(form.convert(raw), raw)


def test_a_coin_may_be_a_bool() -> None:
    convert = obs_form(GYM, spaces.Discrete(2)).convert
    assert [convert(True).tolist(), convert(np.int8(0)).tolist()] == [[0, 1], [1, 0]]


def test_the_guides_spaces_have_the_numbers_that_it_names() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "your-environment.md").read_text()
    _, example, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    env = SimpleNamespace()
    exec(example, {"self": env, "spaces": spaces, "np": np})
    assert obs_form(GYM, env.observation_space).shape == (10,)
    form = action_form(GYM, env.action_space)
    assert form.spec.sizes == (5, 2, 2)
    assert (
        str(form.convert(np.array([3, 0, 1]))) == "{'move': 3, 'push': array([0, 1], dtype=int8)}"
    )


# What is refused

PART = r'observation_space\["a"\]\[1\]'


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (spaces.Text(3), f"{PART} = Text.* is none of Box, Discrete"),
        (spaces.Sequence(VECTOR), f"{PART} = Sequence"),
        (spaces.Box(0, 1, (0,)), f"{PART} = Box.* has no entries"),
        (spaces.Box(0, 255, (2, 3, 4, 5), np.uint8), f"{PART} = Box.* has at most 3 axes"),
        (spaces.Discrete(100_000), rf"{PART} = Discrete\(100000\) needs .* more than 65536"),
        (CAMERA, f"{PART} is an image of 36 x 36 pixels or more"),
    ],
    ids=str,
)
def test_observations_are_refused_by_the_name_of_the_part(part: Space, words: str) -> None:
    refused(words, spaces.Dict(a=spaces.Tuple([VECTOR, part])), spaces.Discrete(2))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Dict(a=spaces.Text(3)), r'action_space\["a"\] = Text.* must be Discrete'),
        (
            spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2,))]),
            r"action_space\[1\] = Box.* and its action_space\[0\] = Discrete.* cannot be mixed",
        ),
        (spaces.Dict(a=spaces.Box(0, 5, (2,), np.int64)), r'action_space\["a"\] = Box'),
        (spaces.Dict(), "action_space has no entries"),
    ],
    ids=str,
)
def test_actions_are_refused_by_the_name_of_the_part(space: Space, words: str) -> None:
    refused(words, VECTOR, space)


def test_a_space_without_parts_is_refused() -> None:
    refused("observation_space has no parts", spaces.Dict(), spaces.Discrete(2))


def refused(words: str, obs: Space, action: Space) -> None:
    with pytest.raises(ConfigError, match=rf"env\.id=Parts-v0: its {words}") as caught:
        env_of(obs, action)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([1], r"the observation must be a dict with the keys a, b, but is a list of 1"),
        ({"a": 1}, r"must be a dict with the keys a, b, but is a dict with the keys a$"),
        ({"a": 1, "b": 2}, r'the observation\["b"\] must be a tuple of 2, but is a int$'),
        ({"a": 1, "b": (2,)}, r'the observation\["b"\] must be a tuple of 2, but is a tuple of 1$'),
        (
            {"a": 0, "b": (np.zeros(2), np.zeros(2, int))},
            r'observation_space\["a"\]: .* integers from 1 to 3, .* is 0$',
        ),
        (
            {"a": 4, "b": (np.zeros(2), np.zeros(2, int))},
            r'observation_space\["a"\]: .* integers from 1 to 3, .* is 4$',
        ),
        (
            {"a": 1.0, "b": (np.zeros(2), np.zeros(2, int))},
            r'observation_space\["a"\]: .* integers from 1 to 3, .* is 1.0$',
        ),
        (
            {"a": 1, "b": (np.array([0, np.nan]), np.zeros(2, int))},
            r'observation_space\["b"\]\[0\]: the observation must be finite',
        ),
        (
            {"a": 1, "b": (np.zeros(2), np.zeros(3, int))},
            r'observation_space\["b"\]\[1\]: the observation has the shape \(3,\)',
        ),
    ],
    ids=str,
)
def test_observations_that_do_not_fit_are_named(
    raw: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = spaces.Dict(
        a=spaces.Discrete(3, start=1),
        b=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])]),
    )
    monkeypatch.setattr(Sampled, "_observe", lambda _: raw)
    with pytest.raises(EnvError, match=rf"reset\(seed=0\) failed(.|\n)*{words}"):
        env_of(space, spaces.Discrete(2)).reset(seed=0)


# States

PARTS = spaces.Dict(
    height=spaces.Box(-np.inf, np.inf, ()),
    room=spaces.Discrete(5, start=1),
    things=spaces.Tuple([spaces.MultiBinary(3), VECTOR]),
)
MOVES = spaces.Dict(go=spaces.Discrete(3, start=-1), hands=spaces.MultiBinary(2))


def test_a_replay_restores_spaces_with_parts() -> None:
    config = sections.gym("Parts-v0", kwargs={"obs": PARTS, "action": MOVES})
    assert restores_exactly(config)
    env, restored = env_of(PARTS, MOVES), env_of(PARTS, MOVES)
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    for _ in range(5):
        obs, *_ = env.step(random_action(env, rng))
    np.testing.assert_array_equal(restored.set_state(env.get_state()), obs)
