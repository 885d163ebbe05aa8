"""Football: the same game as the package's own environment, and states that restore exactly.

All comparisons are bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import sections
from tests.harness import NO_FOOTBALL
from tests.integration.football_games import EASY, KEEPER, child

pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)

from htsrl_cli.envs.base import Array, Env
from htsrl_cli.envs.football import environment as football
from htsrl_cli.envs.football.config import SCENARIOS, FootballConfig
from htsrl_cli.envs.football.environment import NUM_ACTIONS
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import ConfigError

# gym is no longer maintained and warns about that.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:gym\.")

IDLE, RIGHT, SHOT = 0, 5, 12


def package_env(config: FootballConfig, seed: int) -> Any:
    """Returns the package's environment, set to the episode of `seed`."""
    from gfootball.env import create_environment

    by_seed = {
        "game_engine_random_seed": seed,
        "reverse_team_processing": seed % 2 == 1,
        "episode_number": seed // 2 % 2,
    }
    return create_environment(
        env_name=config.scenario,
        representation=config.representation,
        stacked=config.frame_stack == 4,
        rewards=config.rewards,
        render=config.representation.startswith("pixels"),
        number_of_left_players_agent_controls=config.num_left_players,
        number_of_right_players_agent_controls=config.num_right_players,
        other_config_options=by_seed,
    )


def same(ours: Array, theirs: Array) -> bool:
    """Returns True if arrays are equal; the package uses float64 in places."""
    return ours.shape == theirs.shape and ours.tobytes() == theirs.astype(ours.dtype).tobytes()


def compare(config: FootballConfig, seed: int, num_steps: int) -> tuple[int, float]:
    """Plays the same random actions in both environments, to the episode's end at most.

    Returns:
        The number of env steps, and the sum of absolute rewards.
    """
    rng, total = np.random.default_rng(seed), 0.0
    theirs = package_env(config, seed)
    with closing(make_env(config, 0)) as env, closing(theirs):
        assert same(env.reset(seed=seed)[0], theirs.reset())
        for t in range(num_steps):
            action = rng.integers(0, NUM_ACTIONS, config.num_columns)
            obs, reward, terminated, truncated, _ = env.step(action)
            expected, pay, done, _ = theirs.step(action if len(action) > 1 else int(action[0]))
            assert same(obs, expected), t
            assert np.float32(reward).tobytes() == np.float32(pay).tobytes(), t
            assert (terminated or truncated) == done, t
            total += float(np.abs(reward).sum())
            if done:
                return t + 1, total
    return num_steps, total


# The package's own environment


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_plays_like_the_package(scenario: str) -> None:
    """Compares an odd and an even seed, which differ in the order of the sides."""
    for seed in (1, 2):
        compare(sections.football(scenario), seed, 40)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_plays_like_the_package_for_long(scenario: str) -> None:
    """Compares env steps up to the first keyframe, after which 5_vs_5 may differ."""
    for seed in range(4):
        compare(sections.football(scenario), seed, football.STEPS_BETWEEN_KEYFRAMES - 1)


VARIANTS = {
    "three players": replace(KEEPER, num_left_players=3),
    "right side": sections.football("1_vs_1_easy", num_left_players=0, num_right_players=1),
    "both sides": sections.football("11_vs_11_stochastic", num_left_players=2, num_right_players=3),
    "vectors": sections.football("11_vs_11_kaggle", representation="simple115v2", frame_stack=1),
    "stacked vectors of both sides": sections.football(
        "5_vs_5", representation="simple115v2", num_left_players=4, num_right_players=4
    ),
    "goals only": replace(EASY, rewards="scoring"),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_variants_play_like_the_package(config: FootballConfig) -> None:
    for seed in (1, 2, 3):
        compare(config, seed, 50)


def test_rewards_are_compared_over_checkpoints_and_goals() -> None:
    """Passes three checkpoints and scores from afar, which pays the other seven, too."""
    config = sections.football("academy_empty_goal", frame_stack=1)
    theirs = package_env(config, 1)
    rewards: list[float] = []
    with closing(make_env(config, 0)) as env, closing(theirs):
        env.reset(seed=1)
        theirs.reset()
        terminated = False
        while not terminated:
            action = SHOT if len(rewards) >= 20 else RIGHT
            _, reward, terminated, *_ = env.step(np.array([action]))
            assert np.float32(reward) == np.float32(theirs.step(action)[1])
            rewards.append(float(np.asarray(reward)))
    assert [reward for reward in rewards if reward] == pytest.approx([0.1, 0.1, 0.1, 1.7])


# Rendering, in separate processes: only one engine in a process can render

RENDER = """
import hashlib, sys
import numpy as np
from dataclasses import replace
from htsrl_cli.envs.registry import make_env
from tests.integration.football_games import EASY
from tests.integration.test_football import package_env

def show(*images):
    for image in images:
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        print(f"{image.shape} {image.dtype} {digest} {len(set(image.flat))}", flush=True)

who, *representations = sys.argv[1:]
for representation in representations:
    config = replace(EASY, representation=representation)
    if who == "package":
        env = package_env(config, 1)
        show(env.reset(), env.step(5)[0], env.step(5)[0])
    else:
        make_env(config, -1).close()  # as the preflight and the runner do
        env = make_env(config, 0)
        step = lambda: env.step(np.array([5]))[0]
        show(env.reset(seed=1)[0], step(), step())
        state = env.get_state()
        show(step(), env.set_state(state), step())
    env.close()
"""


def rendered(who: str, *representations: str) -> list[str]:
    lines = child(RENDER, who, *representations).splitlines()
    return [line for line in lines if line.startswith("(")]


@pytest.mark.slow
@pytest.mark.parametrize("depths", [{"pixels_gray": 1}, {"pixels": 3, "pixels_gray": 1}], ids=len)
def test_images_are_rendered(depths: dict[str, int]) -> None:
    """Renders without a display, in environments built one after the other, and after a restore."""
    lines = rendered("ours", *depths)
    for number, depth in enumerate(depths.values()):
        *images, following, restored, again = lines[6 * number : 6 * number + 6]
        assert len({*images, following}) == 4
        assert restored == images[-1]
        assert again == following
        assert images[0].startswith(f"(72, 96, {4 * depth}) uint8")
        assert int(images[0].split()[-1]) > 20, "a picture has many shades"


@pytest.mark.slow
@pytest.mark.parametrize("representation", ["pixels_gray", "pixels"])
def test_rendered_images_are_those_of_the_package(representation: str) -> None:
    assert rendered("ours", representation)[:3] == rendered("package", representation)


def test_every_representation_has_its_spec() -> None:
    shapes = {"extracted": (72, 96, 4), "simple115v2": (115,)}
    for representation, shape in shapes.items():
        for frame_stack in (1, 3):
            config = replace(KEEPER, representation=representation, frame_stack=frame_stack)
            for num_players in (1, 3):
                check_spec(replace(config, num_left_players=num_players), shape)


def check_spec(config: FootballConfig, shape: tuple[int, ...]) -> None:
    with closing(make_env(config, 0)) as env:
        spec = env.env_spec
        assert spec.obs_shape == (*shape[:-1], config.frame_stack * shape[-1])
        players = (config.num_columns,) if config.num_columns > 1 else ()
        first, _ = env.reset(seed=0)
        second, *_ = env.step(np.full(config.num_columns, RIGHT))
        for obs in (first, second):
            assert obs.shape == (*players, *spec.obs_shape)
            assert obs.dtype == spec.obs_dtype
        assert not np.array_equal(first[..., -shape[-1] :], second[..., -shape[-1] :])
        # An env step shifts the stack by one; a reset fills it with the first frame.
        assert np.array_equal(second[..., : -shape[-1]], first[..., shape[-1] :])
        assert np.array_equal(first[..., : shape[-1]], first[..., -shape[-1] :])


def test_players_see_themselves() -> None:
    with closing(make_env(replace(KEEPER, num_left_players=3, frame_stack=1), 0)) as env:
        obs, _ = env.reset(seed=0)
        sides, itself = obs[..., :3], obs[..., 3]
        assert np.array_equal(sides[0], sides[1])
        assert np.array_equal(sides[0], sides[2])
        assert len({mark.tobytes() for mark in itself}) == 3


# Ends and scores


def play(env: Env, actions: Iterator[int] | list[int]) -> tuple[list[float], bool, bool, Any]:
    """Plays to the end; returns rewards, `terminated`, `truncated` and the episode's `info`."""
    rewards: list[float] = []
    for action in actions:
        num_players = env.env_spec.num_players
        _, reward, terminated, truncated, info = env.step(np.full(num_players, action))
        rewards.append(float(np.mean(reward)))
        assert bool(info) == (terminated or truncated)
        if info:
            return rewards, terminated, truncated, info["episode"]
    raise AssertionError("no end")


def test_time_limit_truncates() -> None:
    """Plays an academy scenario that nothing else ends: it is truncated after 400 steps."""
    config = sections.football("academy_run_to_score")
    theirs = package_env(config, 0)
    with closing(make_env(config, 0)) as env, closing(theirs):
        env.reset(seed=0)
        rewards, terminated, truncated, episode = play(env, [IDLE] * 500)
        theirs.reset()
        dones = [theirs.step(IDLE)[2] for _ in rewards]
    assert (terminated, truncated) == (False, True)
    assert dones == [False] * 400 + [True]
    assert episode == {"r": 0.0, "l": 401}


@pytest.mark.parametrize(
    ("rewards", "training_return"), [("scoring", 1.0), ("scoring,checkpoints", 2.0)]
)
def test_goal_terminates(rewards: str, training_return: float) -> None:
    """Checks that the raw score is the goal difference, whatever the training rewards are."""
    with closing(make_env(replace(EASY, rewards=rewards), 0)) as env:
        for _ in range(2):
            env.reset(seed=1)
            paid, terminated, truncated, episode = play(env, [RIGHT] * 8 + [SHOT] * 100)
            assert (terminated, truncated) == (True, False)
            assert episode == {"r": 1.0, "l": len(paid)}
            assert sum(paid) == pytest.approx(training_return)


def test_the_right_side_scores_for_itself() -> None:
    """Plays 1_vs_1, where a goal of the left side is a negative reward of the right side."""
    config = sections.football("1_vs_1_easy", num_left_players=1, num_right_players=1)
    sums = np.zeros(2)
    with closing(make_env(replace(config, rewards="scoring"), 0)) as env:
        env.reset(seed=0)
        info: dict[str, Any] = {}
        ended, t = False, 0
        while not ended:
            action = SHOT if t % 12 == 11 else RIGHT
            _, reward, terminated, truncated, info = env.step(np.array([action, IDLE]))
            sums += np.asarray(reward)
            ended, t = terminated or truncated, t + 1
    assert sums[0] > 0
    assert sums[1] == -sums[0]
    assert info["episode"]["r"] == sums[0]


def test_possession_ends_where_the_scenario_says_so() -> None:
    """Loses the ball, which terminates the episode long before the time limit."""
    with closing(make_env(KEEPER, 0)) as env:
        env.reset(seed=3)
        rewards, terminated, truncated, episode = play(env, [11] * 400)
    assert (terminated, truncated) == (True, False)
    assert episode["l"] == len(rewards) < 400
    assert episode["r"] == 0.0


@pytest.mark.parametrize(
    ("scenario", "left", "right", "key"),
    [
        ("academy_empty_goal_close", 3, 0, "env.num_left_players"),
        ("academy_3_vs_1_with_keeper", 5, 0, "env.num_left_players"),
        ("1_vs_1_easy", 1, 2, "env.num_right_players"),
        ("11_vs_11_stochastic", 12, 0, "env.num_left_players"),
    ],
)
def test_more_players_than_can_be_controlled(
    scenario: str, left: int, right: int, key: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{key}=.*at most") as error:
        make_env(sections.football(scenario, num_left_players=left, num_right_players=right), 0)
    assert "\n" not in str(error.value)
