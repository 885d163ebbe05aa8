"""Atari games: observations, rewards, and the ends of episodes and games.

The preprocessing follows Mnih et al. (2015) and Machado et al. (2018).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from htsrl_cli.envs.atari.config import AtariConfig
from htsrl_cli.envs.atari.emulator import BOOT_FRAMES, FIRE, FRAME_RATE, NOOP, Emulator
from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.state import check_fit, pack_state, unpack_state
from htsrl_cli.errors import ConfigError


class AtariEnv:
    """A game of the Arcade Learning Environment.

    The agent trains on *episodes*, but scores are those of whole *games*. With
    `terminal_on_life_loss`, a lost life terminates the episode, and the next `reset` continues the
    same game. After a game over or at the limit on frames, `reset` starts a new game. An env step
    that reaches the limit truncates the episode, unless it also terminates the episode.

    Rewards during a reset (no-ops, FIRE) count in the raw score, but not in training. If a game
    ends during the reset after a lost life, the next env step reports the end.

    Every returned observation is a new array, uint8 [screen_size, screen_size, frame_stack], with
    the newest screen last.

    Args:
        config: the section `env`.
        pictured: True if `render` will be called.

    Attributes:
        frame_rate: env steps per second at the game's normal speed.

    Raises:
        ConfigError: `env.game` is unknown, or `env.max_num_frames_per_episode` is too low.
    """

    def __init__(self, config: AtariConfig, pictured: bool = False) -> None:
        _check_cap(config)
        self._config = config
        self._emulator = Emulator(config, pictured)
        self.frame_rate = FRAME_RATE / config.frame_skip
        minimal = self._emulator.minimal_actions
        self._actions = list(range(18)) if config.full_action_space else minimal
        self._fires = config.fire_on_reset and FIRE in minimal
        shape = (config.screen_size, config.screen_size)
        self._screens = [np.zeros(shape, np.uint8) for _ in range(config.frame_stack)]
        self.env_spec = EnvSpec(
            obs_shape=(*shape, config.frame_stack),
            obs_dtype="uint8",
            actions=ActionSpec("categorical", sizes=(len(self._actions),)),
        )
        self._lives = 0
        self._score = 0
        self._length = 0
        self._starts_game = True

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins an episode: a new game that `seed` determines, or the next life of the same game.

        In both cases, `seed` also determines which actions of the episode are sticky.
        """
        if self._starts_game:
            self._start_game(seed)
        else:
            self._emulator.rng = np.random.default_rng(seed)
        self._score += self._fire()
        self._lives = self._emulator.lives
        for screen in self._screens:
            screen[...] = self._emulator.screen
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Plays one action for `frame_skip` frames.

        With `fire_on_reset`, also presses FIRE if the episode continues after a lost life.
        """
        reward = self._emulator.run(self._actions[int(action[0])], self._config.frame_skip)
        life_lost = self._life_lost()
        if life_lost and not self._config.terminal_on_life_loss:
            reward += self._fire()
        self._score += reward
        self._length += 1
        self._push_screen()
        over = self._emulator.game_over
        terminated = over or (life_lost and self._config.terminal_on_life_loss)
        self._starts_game = over or self._emulator.truncated
        truncated = self._starts_game and not terminated
        return self._observation(), self._train_on(reward), terminated, truncated, self._info()

    def get_state(self) -> bytes:
        """Returns the complete state of the game, about 50 KB."""
        meta, blobs = self._emulator.get_state()
        meta |= self._identity()
        meta |= {"lives": self._lives, "score": self._score, "length": self._length}
        meta |= {"starts_game": self._starts_game}
        return pack_state("atari", meta, [*blobs, *(s.tobytes() for s in self._screens)])

    def set_state(self, state: bytes) -> Array:
        """Restores a state that `get_state` returned in any process; returns the observation.

        Raises:
            CheckpointError: the bytes are damaged, or belong to another game, screen size or
                frame stack.
        """
        meta, (keyframe, played, *screens) = unpack_state("atari", state)
        check_fit("atari", meta, self._identity())
        for screen, stored in zip(self._screens, screens, strict=True):
            screen[...] = np.frombuffer(stored, np.uint8).reshape(screen.shape)
        self._emulator.set_state(meta, [keyframe, played], self._screens[-1])
        self._lives, self._score = meta["lives"], meta["score"]
        self._length, self._starts_game = meta["length"], meta["starts_game"]
        return self._observation()

    @property
    def score(self) -> float:
        """Raw score of the game so far."""
        return float(self._score)

    def render(self) -> Array:
        """Returns the emulator's screen, RGB, uint8 [210, 160, 3] in most games.

        Like an observation, it is the maximum of the last two frames. After `set_state`, it is
        wrong until the next env step.
        """
        return self._emulator.picture.copy()

    def close(self) -> None:
        """Does nothing: the emulator has no resources other than memory."""

    def _start_game(self, seed: int) -> None:
        self._emulator.start(seed)
        self._score = self._emulator.run(NOOP, self._draw_noops())
        if self._emulator.game_over:
            self._emulator.start(seed)
            self._score = 0
        self._length = 0
        self._starts_game = False

    def _draw_noops(self) -> int:
        return int(self._emulator.rng.integers(self._config.noop_max + 1))

    def _fire(self) -> int:
        """Presses FIRE for `frame_skip` frames if `fire_on_reset` is set and the game uses FIRE.

        Returns the sum of the raw rewards of these frames; 0 if FIRE is not pressed.
        """
        return self._emulator.run(FIRE, self._config.frame_skip) if self._fires else 0

    def _life_lost(self) -> bool:
        lives = self._emulator.lives
        lost = lives < self._lives
        self._lives = lives
        return lost

    def _train_on(self, reward: int) -> float:
        if not self._config.reward_clipping:
            return float(reward)
        return float((reward > 0) - (reward < 0))

    def _info(self) -> dict[str, Any]:
        if not self._starts_game:
            return {}
        return {"episode": {"r": self.score, "l": self._length}}

    def _push_screen(self) -> None:
        oldest = self._screens.pop(0)
        oldest[...] = self._emulator.screen
        self._screens.append(oldest)

    def _observation(self) -> Array:
        # OpenCV stacks the screens five times as fast as numpy.stack(axis=-1).
        return cv2.merge(self._screens).reshape(self.env_spec.obs_shape)

    def _identity(self) -> dict[str, Any]:
        config = self._config
        return {
            "game": config.game,
            "screen_size": config.screen_size,
            "frame_stack": config.frame_stack,
        }


def make_atari_env(config: AtariConfig, index: int, renderer: str | None) -> AtariEnv:
    """Builds an `AtariEnv`; `index` has no effect.

    Raises:
        ConfigError: as for `AtariEnv`.
    """
    return AtariEnv(config, pictured=renderer is not None)


def _check_cap(config: AtariConfig) -> None:
    frames_of_reset = BOOT_FRAMES + config.noop_max + config.frame_skip
    cap = config.max_num_frames_per_episode
    if cap <= frames_of_reset:
        remedy = f"must exceed the {frames_of_reset} frames that a reset may take"
        raise ConfigError("env.max_num_frames_per_episode", cap, remedy)
