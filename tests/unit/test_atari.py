"""Tests of Atari: pictures against a slow reference, ends of lives and games, exact states."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import ale_py
import numpy as np
import pytest
from ale_py import roms

from htsrl_cli.cli.files import configs_dir
from htsrl_cli.envs.atari.config import AtariConfig
from htsrl_cli.envs.atari.emulator import ATARI_57, BOOT_FRAMES
from htsrl_cli.envs.atari.environment import AtariEnv
from htsrl_cli.envs.base import Array
from htsrl_cli.errors import CheckpointError, ConfigError
from tests import sections

NOOP = np.array([0])


def random_actions(env: AtariEnv, num_steps: int, seed: int = 0) -> Array:
    """Returns random actions, each held for five env steps so that games make progress."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(env.env_spec.actions.sizes[0], size=(num_steps // 5 + 1, 1))
    return np.repeat(drawn, 5, axis=0)[:num_steps]


def play(env: AtariEnv, actions: Array) -> str:
    """Plays `actions` and returns a hash of all results; resets after the end of an episode."""
    digest = hashlib.sha256()
    for t, action in enumerate(actions):
        obs, *rest = env.step(action)
        digest.update(obs.tobytes() + repr(rest).encode())
        if rest[1] or rest[2]:
            digest.update(env.reset(seed=t)[0].tobytes())
    return digest.hexdigest()


def until_end(env: AtariEnv, action: Array = NOOP) -> tuple[float, bool, bool, dict[str, object]]:
    while True:
        _, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return reward, terminated, truncated, info


# Pictures


@cache
def area_weights(length: int, size: int) -> Array:
    """Returns each old pixel's share in each new one, float64 [size, length]; rows sum to 1."""
    weights = np.zeros((size, length))
    scale = length / size
    for i in range(size):
        for k in range(length):
            weights[i, k] = max(0.0, min(k + 1, (i + 1) * scale) - max(k, i * scale)) / scale
    return weights


def reference_shrink(picture: Array, size: int) -> Array:
    """Resizes a picture to the mean over each new pixel's area."""
    height, width = picture.shape
    shrunk: Array = area_weights(height, size) @ picture @ area_weights(width, size).T
    return shrunk


@pytest.mark.parametrize("frame_skip", [1, 2, 4])
def test_screen_is_the_maximum_of_two_frames_shrunk_by_area(frame_skip: int) -> None:
    config = sections.atari("pong", frame_skip=frame_skip, noop_max=0, fire_on_reset=False)
    env = AtariEnv(config)
    env.reset(seed=0)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(str(Path(roms.__file__).parent / "pong.bin"))
    ale.reset_game()
    for _ in range(BOOT_FRAMES):
        ale.act(0)
    actions = ale.getMinimalActionSet()
    for action in random_actions(env, 60):
        obs = env.step(action)[0]
        frames = []
        for _ in range(frame_skip):
            ale.act(actions[int(action[0])])
            frames.append(ale.getScreenGrayscale())
        expected = reference_shrink(np.max(frames[-2:], axis=0), 84)
        assert np.abs(obs[..., -1] - expected).max() <= 0.501


def test_observation_is_the_last_screens_newest_last() -> None:
    env = AtariEnv(sections.atari("breakout", frame_stack=3))
    obs, _ = env.reset(seed=3)
    assert obs.shape == env.env_spec.obs_shape == (84, 84, 3)
    assert obs.dtype == np.uint8
    assert (obs == obs[..., :1]).all()
    for action in random_actions(env, 20):
        before = obs.copy()
        following = env.step(action)[0]
        assert (obs == before).all()
        assert (following[..., :-1] == obs[..., 1:]).all()
        obs = following


# Ends of episodes and games


def test_lost_life_ends_the_episode_but_not_the_game() -> None:
    # Breakout does nothing until FIRE is pressed, so each of the five lives is lost after a reset.
    env = AtariEnv(sections.atari("breakout", noop_max=0))
    env.reset(seed=0)
    lives = []
    for _ in range(5):
        _, terminated, truncated, info = until_end(env)
        lives.append(env._emulator.lives)
        assert (terminated, truncated) == (True, False)
        assert ("episode" in info) == (lives[-1] == 0)
        env.reset(seed=1)
    assert lives == [4, 3, 2, 1, 0]
    assert env._emulator.lives == 5


def test_going_on_without_fire_leaves_the_emulator_alone() -> None:
    env = AtariEnv(sections.atari("ms_pacman"))
    env.reset(seed=0)
    until_end(env)
    assert not env._starts_game
    screen, frame = env._emulator.screen.copy(), env._emulator._ale.getFrameNumber()
    obs, _ = env.reset(seed=1)
    assert env._emulator._ale.getFrameNumber() == frame
    assert (obs == screen[..., None]).all()


def test_without_fire_breakout_stands_still() -> None:
    config = sections.atari("breakout", fire_on_reset=False, max_num_frames_per_episode=2000)
    env = AtariEnv(config)
    env.reset(seed=0)
    assert until_end(env)[1:3] == (False, True)
    assert env._emulator.lives == 5


def test_whole_game_is_one_episode_and_fires_between_lives() -> None:
    env = AtariEnv(sections.atari("breakout", terminal_on_life_loss=False))
    env.reset(seed=0)
    _, terminated, _, info = until_end(env)
    assert terminated
    assert "episode" in info
    assert env._emulator.lives == 0


def test_raw_score_counts_what_clipping_hides() -> None:
    # Ice blocks in Frostbite pay 10 or more each.
    env = AtariEnv(sections.atari("frostbite"))
    raw = AtariEnv(sections.atari("frostbite", reward_clipping=False))
    for each in (env, raw):
        each.reset(seed=2)
    total, length = 0.0, 0
    for t, action in enumerate(random_actions(env, 4000)):
        _, clipped, terminated, _, info = env.step(action)
        _, reward, *_ = raw.step(action)
        assert clipped == np.sign(reward)
        total, length = total + reward, length + 1
        if "episode" in info:
            break
        if terminated:
            env.reset(seed=t)
            raw.reset(seed=t)
    assert total >= 10
    assert info["episode"] == {"r": total, "l": length}


def test_rewards_of_noops_and_fire_count_in_the_raw_score(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every call of `run` pays 1 more: the no-ops, five times FIRE, and the env steps.
    env = AtariEnv(sections.atari("breakout"))
    play_frames, paid = env._emulator.run, []

    def pay(action: int, num_frames: int) -> int:
        paid.append(play_frames(action, num_frames) + 1)
        return paid[-1]

    monkeypatch.setattr(env._emulator, "run", pay)
    env.reset(seed=0)
    while "episode" not in (info := until_end(env)[3]):
        env.reset(seed=0)
    assert info["episode"] == {"r": float(sum(paid)), "l": len(paid) - 6}


def test_cap_on_frames_truncates() -> None:
    # The boot takes 4 frames and an env step takes 4, so the 24th env step reaches frame 100.
    config = sections.atari("pong", noop_max=0, fire_on_reset=False, max_num_frames_per_episode=100)
    env = AtariEnv(config)
    env.reset(seed=0)
    _, terminated, truncated, info = until_end(env)
    assert (terminated, truncated) == (False, True)
    assert info["episode"] == {"r": 0.0, "l": 24}
    env.reset(seed=0)
    assert env._emulator._ale.getEpisodeFrameNumber() == BOOT_FRAMES


def frames_until(config: AtariConfig) -> int:
    """Returns the frames from the boot to the end of the first episode of no-ops."""
    env = AtariEnv(config)
    env.reset(seed=0)
    until_end(env)
    return env._emulator._ale.getEpisodeFrameNumber()


@pytest.mark.parametrize("terminal_on_life_loss", [True, False])
def test_an_end_at_the_cap_is_terminated(terminal_on_life_loss: bool) -> None:
    # The env step that reaches the limit also loses the life or ends the game.
    config = sections.atari(
        "breakout", noop_max=0, frame_skip=1, terminal_on_life_loss=terminal_on_life_loss
    )
    cap = frames_until(config)
    env = AtariEnv(
        sections.atari(
            "breakout",
            noop_max=0,
            frame_skip=1,
            terminal_on_life_loss=terminal_on_life_loss,
            max_num_frames_per_episode=cap,
        )
    )
    env.reset(seed=0)
    _, terminated, truncated, info = until_end(env)
    assert (terminated, truncated) == (True, False)
    assert "episode" in info
    assert env._emulator.truncated


def test_game_over_during_noops_begins_again() -> None:
    # Pong is lost 0:21 within 10,000 no-ops; the game then starts again without no-ops.
    env = AtariEnv(sections.atari("pong", noop_max=20_000, fire_on_reset=False))
    seed = next(s for s in range(9) if np.random.default_rng(s).integers(20_001) > 10_000)
    obs, _ = env.reset(seed=seed)
    assert env._emulator._ale.getEpisodeFrameNumber() == BOOT_FRAMES
    fresh = AtariEnv(sections.atari("pong", noop_max=0, fire_on_reset=False))
    assert (obs == fresh.reset(seed=0)[0]).all()
    assert env._score == 0


def test_cap_reached_by_fire_is_reported_by_the_next_step() -> None:
    # The life is lost 1 to 3 frames before the limit, and FIRE plays the remaining frames.
    lost_at = frames_until(sections.atari("breakout", noop_max=0))
    config = sections.atari("breakout", noop_max=0, max_num_frames_per_episode=lost_at + 2)
    env = AtariEnv(config)
    env.reset(seed=0)
    assert until_end(env)[3] == {}
    env.reset(seed=1)
    restored = AtariEnv(config)
    restored.set_state(env.get_state())
    for each in (env, restored):
        _, reward, terminated, truncated, info = each.step(NOOP)
        assert (reward, terminated, truncated) == (0.0, False, True)
        assert "episode" in info
    assert (env.step(NOOP)[0] == restored.step(NOOP)[0]).all()


# Seeds and states


@pytest.mark.parametrize("game", ["berzerk", "qbert", "amidar", "pong"])
def test_reset_is_a_function_of_the_seed(game: str) -> None:
    # Frame skip 1 shows every frame. In these games, something survives the emulator's own reset.
    config = sections.atari(game, frame_skip=1, repeat_action_probability=0.25)
    fresh, used = AtariEnv(config), AtariEnv(config)
    used.reset(seed=1)
    play(used, random_actions(used, 700))
    used._starts_game = True
    assert (fresh.reset(seed=9)[0] == used.reset(seed=9)[0]).all()
    actions = random_actions(fresh, 300, seed=1)
    assert play(fresh, actions) == play(used, actions)


def test_seeds_draw_0_to_noop_max_noops() -> None:
    env = AtariEnv(sections.atari("pong", noop_max=3, fire_on_reset=False))
    frames = set()
    for seed in range(30):
        env._starts_game = True
        env.reset(seed=seed)
        frames.add(env._emulator._ale.getEpisodeFrameNumber() - BOOT_FRAMES)
    assert frames == {0, 1, 2, 3}


def test_half_drawn_frame_before_a_new_game() -> None:
    # The emulator's own reset leaves Qbert in a half-drawn frame.
    fresh, left = AtariEnv(sections.atari("qbert")), AtariEnv(sections.atari("qbert"))
    left._emulator._ale.reset_game()
    assert (left.reset(seed=0)[0] == fresh.reset(seed=0)[0]).all()
    actions = random_actions(fresh, 100)
    assert play(left, actions) == play(fresh, actions)


def test_saving_changes_nothing() -> None:
    saved, unsaved = (AtariEnv(sections.atari("yars_revenge", frame_skip=1)) for _ in range(2))
    actions = random_actions(saved, 600)
    assert (saved.reset(seed=1)[0] == unsaved.reset(seed=1)[0]).all()
    for action in actions:
        saved.get_state()
        assert (saved.step(action)[0] == unsaved.step(action)[0]).all()


def test_state_before_a_reset_keeps_which_reset_comes() -> None:
    env, restored = AtariEnv(sections.atari("breakout")), AtariEnv(sections.atari("breakout"))
    env.reset(seed=0)
    for _ in range(5):
        until_end(env)
        restored.set_state(env.get_state())
        assert (env.reset(seed=4)[0] == restored.reset(seed=4)[0]).all()
        assert env._emulator.lives == restored._emulator.lives


def test_damaged_states_are_refused() -> None:
    env = AtariEnv(sections.atari("pong"))
    env.reset(seed=0)
    state = env.get_state()
    flipped = bytearray(state)
    flipped[len(state) // 2] ^= 1
    for damaged in (b"", state[:10], state[:-1], bytes(flipped), b"\0" * len(state)):
        with pytest.raises(CheckpointError):
            env.set_state(damaged)


@pytest.mark.parametrize("other", [sections.atari("qbert"), sections.atari("pong", frame_stack=2)])
def test_states_of_other_games_and_screens_are_refused(other: AtariConfig) -> None:
    env = AtariEnv(other)
    env.reset(seed=0)
    with pytest.raises(CheckpointError, match="not for"):
        AtariEnv(sections.atari("pong")).set_state(env.get_state())


# Configuration


def test_unknown_game_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"env\.game=spaceinvaders: .*space_invaders"):
        AtariEnv(sections.atari("spaceinvaders"))


def test_cap_within_the_reset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.max_num_frames_per_episode=38"):
        AtariEnv(sections.atari("pong", max_num_frames_per_episode=38))


def test_full_action_space() -> None:
    assert AtariEnv(sections.atari("pong")).env_spec.actions.sizes == (6,)
    assert AtariEnv(sections.atari("pong", full_action_space=True)).env_spec.actions.sizes == (18,)


def test_one_file_for_every_game() -> None:
    files = {path.stem for path in (configs_dir() / "env" / "atari").iterdir()}
    assert files == set(ATARI_57)
    assert len(ATARI_57) == 57
