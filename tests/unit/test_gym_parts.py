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
from gymnasium.spaces.utils import flatten, unflatten
from hypothesis import given, settings
from hypothesis import strategies as st

from htsrl_cli.envs.base import Array
from htsrl_cli.envs.gym.actions import action_form
from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.envs.gym.observations import obs_form
from htsrl_cli.envs.probe import random_action, restores_exactly
from htsrl_cli.errors import ConfigError, EnvError
from tests import sections

GYM = sections.gym("Any-v0")
# Many spaces, always the same ones, and no time limit for one of them.
MANY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 2**16)
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


# Random spaces


@st.composite
def discretes(draw: st.DrawFn) -> Space:
    """Draws a `Discrete`, `MultiDiscrete` or `MultiBinary`."""
    kind = draw(st.integers(0, 2))
    start = draw(st.integers(-3, 3))
    if kind == 0:
        return spaces.Discrete(draw(st.integers(1, 6)), start=start)
    shape = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    if kind == 1:
        sizes = draw(st.lists(st.integers(1, 5), min_size=4, max_size=4))
        nvec = np.array(sizes)[: np.prod(shape)].reshape(shape)
        return spaces.MultiDiscrete(nvec, start=np.full(shape, start))
    return spaces.MultiBinary(draw(st.sampled_from([1, 3])))


@st.composite
def vectors(draw: st.DrawFn) -> Space:
    """Draws a `Box` of floats of at most one axis, with or without bounds."""
    shape = draw(st.sampled_from([(), (1,), (4,)]))
    low, high = draw(st.sampled_from([(-1.0, 1.0), (-np.inf, np.inf), (0.0, np.inf), (-5.0, 9.0)]))
    return spaces.Box(low, high, shape, draw(st.sampled_from([np.float32, np.float64])))


def nested(leaves: st.SearchStrategy[Space]) -> st.SearchStrategy[Space]:
    """Returns the strategy for one of these spaces, or `Dict` and `Tuple` spaces of them."""

    def grow(inner: st.SearchStrategy[Space]) -> st.SearchStrategy[Space]:
        several = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(
            several.map(spaces.Tuple),
            several.map(lambda found: spaces.Dict(dict(zip("cab", found, strict=False)))),
        )

    return st.recursive(leaves, grow, max_leaves=5)


@MANY
@given(nested(st.one_of(discretes(), vectors())), SEEDS)
def test_observations_are_flattened_as_gymnasium_flattens_them(space: Space, seed: int) -> None:
    form = obs_form(GYM, space)
    space.seed(seed)
    raw = space.sample()
    obs = form.convert(raw)
    assert (obs.shape, obs.dtype) == (form.shape, np.dtype(np.float32))
    assert form.dtype == "float32"
    flat = flatten(space, raw)
    np.testing.assert_array_equal(obs, np.asarray(flat, np.float32))
    # Nothing is lost: the raw observation can be found again.
    back = flatten(space, unflatten(space, obs.astype(np.asarray(flat).dtype)))
    np.testing.assert_array_equal(np.asarray(back, np.float32), obs)


@MANY
@given(nested(discretes()), SEEDS)
def test_discrete_actions_fill_their_space(space: Space, seed: int) -> None:
    # Every action vector is another action: its parts can be read from the action.
    env = env_of(VECTOR, space)
    spec = env.env_spec.actions
    assert (spec.kind, spec.dtype) == ("categorical", "int64")
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(5):
        vector = random_action(env, rng)
        assert (vector.shape, vector.dtype) == ((spec.num_dims,), np.dtype(np.int64))
        action = env.to_action(vector)
        assert space.contains(action)
        assert read(space, action) == vector.tolist()
        env.step(vector)
    last = np.array(spec.sizes) - 1
    assert read(space, env.to_action(last)) == last.tolist()


def read(space: Any, action: Any) -> list[int]:
    """Returns the action vector of an action."""
    if isinstance(space, spaces.Dict):
        return [entry for key, own in space.items() for entry in read(own, action[key])]
    if isinstance(space, spaces.Tuple):
        return [entry for own, one in zip(space, action, strict=True) for entry in read(own, one)]
    start = getattr(space, "start", 0)
    found: list[int] = np.atleast_1d(action - np.asarray(start)).ravel().tolist()
    return found


@MANY
@given(nested(vectors()), SEEDS)
def test_actions_of_boxes_are_those_of_each_alone(space: Space, seed: int) -> None:
    form = action_form(GYM, space)
    vector = np.random.default_rng(seed).standard_normal(form.spec.num_dims, dtype=np.float32)
    taken = form.convert(vector)
    assert space.contains(taken)
    leaves = [space]
    while any(isinstance(leaf, spaces.Dict | spaces.Tuple) for leaf in leaves):
        leaves = [own for leaf in leaves for own in children(leaf)]
    alone: list[Array] = []
    for leaf in leaves:
        own = action_form(GYM, leaf)
        part, vector = np.split(vector, [own.spec.num_dims])
        alone.append(own.convert(part).ravel())
    np.testing.assert_array_equal(flatten(space, taken), np.concatenate(alone))


def children(space: Any) -> list[Space]:
    if isinstance(space, spaces.Dict):
        return list(space.values())
    return list(space) if isinstance(space, spaces.Tuple) else [space]


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
    _, example, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
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


# Ignored parts


class Talking(Sampled):
    """An environment with a part of an unsupported space, like MiniGrid's mission."""

    def __init__(self) -> None:
        said = spaces.Dict(position=VECTOR, mission=spaces.Text(20))
        super().__init__(said, spaces.Discrete(2))


gymnasium.register("Talking-v0", f"{__name__}:Talking")


def test_ignored_parts_are_not_seen() -> None:
    config = sections.gym("Talking-v0", ignore_observations=("mission",))
    env = GymEnv(config)
    assert env.env_spec.obs_shape == (3,)
    obs, _ = env.reset(seed=1)
    raw = {"position": np.ones(3, np.float32), "mission": "go"}
    assert env.to_obs(raw).tolist() == [1, 1, 1]
    assert obs.shape == env.step(np.array([0]))[0].shape
    unbatch: Any = env.unbatch
    assert unbatch(raw) is None
    batch = {"position": np.zeros((2, 3)), "mission": ("go", "stay")}
    rows = unbatch(batch)

    assert [env.to_obs(row).tolist() for row in rows] == [[0, 0, 0]] * 2
    with pytest.raises(ConfigError, match=r'observation_space\["mission"\]'):
        GymEnv(sections.gym("Talking-v0"))


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Talking-v0", r"has no such part; its parts are: position, mission|mission, position"),
        ("CartPole-v1", "is no Dict"),
    ],
)
def test_unknown_ignored_parts_are_refused_in_one_line(env_id: str, words: str) -> None:
    config = sections.gym(env_id, ignore_observations=("misison",))
    with pytest.raises(ConfigError, match=words) as caught:
        GymEnv(config)
    assert str(caught.value).startswith("env.ignore_observations=['misison']: ")
    assert "\n" not in str(caught.value)
