"""A game in the Arcade Learning Environment whose state can be saved and restored exactly.

Facts about the emulator (ale-py 0.12, all 57 games) that shape this file:

* A saved state lacks the picture. After a restore, the screen is wrong until the next frame. Even
  then, parts that this frame does not draw (in Alien, Krull, Yars' Revenge) show older pictures.
* A saved state lacks the flag "this frame is only half drawn". The flag is set in a few frames, for
  example when Qbert boots or when a life in Yars' Revenge begins. If the state is saved in such a
  frame, the restored game runs one frame early or late.
* Loading a ROM takes 64 ms, resetting 3 ms, restoring 0.04 ms. Berzerk's second reset differs from
  its first.

Therefore, every game starts from the same state, which is saved a few frames after the boot.
`get_state` does not return the emulator's current state. It returns a *keyframe* (an earlier state
of the emulator) and the actions played since the keyframe. When a keyframe is taken, the running
game itself is restored from it, so that the game continues exactly as after a later restore.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import ale_py
import cv2
import numpy as np
from ale_py import roms

from htsrl_cli.envs.atari.config import AtariConfig
from htsrl_cli.envs.base import Array
from htsrl_cli.envs.state import generator_state, restore_generator
from htsrl_cli.errors import CheckpointError, ConfigError

NOOP = ale_py.Action.NOOP.value
FIRE = ale_py.Action.FIRE.value
BOOT_FRAMES = 4
FRAME_RATE = 60.0
# Replaying this many frames takes 0.04 s. Taking a keyframe takes 0.3 ms, which is about 1
# microsecond for each env step between two keyframes.
_FRAMES_BETWEEN_KEYFRAMES = 1024

# The games of Bellemare et al. (2013) and Mnih et al. (2015), by ROM name.
ATARI_57: tuple[str, ...] = tuple(
    """alien amidar assault asterix asteroids atlantis bank_heist battle_zone beam_rider berzerk
    bowling boxing breakout centipede chopper_command crazy_climber defender demon_attack
    double_dunk enduro fishing_derby freeway frostbite gopher gravitar hero ice_hockey jamesbond
    kangaroo krull kung_fu_master montezuma_revenge ms_pacman name_this_game phoenix pitfall pong
    private_eye qbert riverraid road_runner robotank seaquest skiing solaris space_invaders
    star_gunner surround tennis time_pilot tutankham up_n_down venture video_pinball wizard_of_wor
    yars_revenge zaxxon""".split()  # noqa: SIM905
)

# By default, OpenCV would start a pool of threads in every executor process, which would slow down
# all of them.
cv2.setNumThreads(0)


class Emulator:
    """A running game, which repeats actions, pools and resizes screens, and saves its state.

    This class itself samples the sticky actions, frame by frame. The Arcade Learning Environment
    would not sample them reproducibly: its memory of the last action survives a reset and is
    missing from saved states.

    Args:
        config: the section `env`.
        pictured: True to fill `picture` as well.

    Attributes:
        screen: uint8 [screen_size, screen_size]; the observed screen after the last `run`. The next
            `run` overwrites it.
        picture: uint8 [H, W, 3], RGB; the same screen in full size and color if `pictured`,
            otherwise black. The next `run` overwrites it.
        rng: the generator of a game's random events; `start` seeds it.

    Raises:
        ConfigError: `env.game` is unknown.
    """

    def __init__(self, config: AtariConfig, pictured: bool = False) -> None:
        self._ale = _load(config)
        self._repeat_probability = config.repeat_action_probability
        self._last_action = NOOP
        height, width = self._ale.getScreenDims()
        self._frame, self._frame_before = _frames(height, width)
        self.screen = np.zeros((config.screen_size, config.screen_size), np.uint8)
        self._pictured = pictured
        self.picture = np.zeros((height, width, 3), np.uint8)
        self._picture_before = np.zeros((height, width, 3), np.uint8)
        self.rng = np.random.default_rng(0)
        self._played = bytearray()
        self._boot()

    @property
    def minimal_actions(self) -> list[int]:
        """The emulator's numbers for the actions that have an effect in this game."""
        return [action.value for action in self._ale.getMinimalActionSet()]

    @property
    def lives(self) -> int:
        """Lives left; 0 in games without lives."""
        return self._ale.lives()

    @property
    def game_over(self) -> bool:
        """True if the game has ended by its own rules."""
        return self._ale.game_over(with_truncation=False)

    @property
    def truncated(self) -> bool:
        """True if the game has reached the limit on frames."""
        return self._ale.game_truncated()

    def start(self, seed: int) -> None:
        """Starts a game that depends on nothing but `seed` and the actions."""
        self._set_keyframe(self._first_state)
        self.screen[...] = self._first_screen
        self.picture[...] = self._first_picture
        self._last_action = NOOP
        self.rng = np.random.default_rng(seed)

    def run(self, action: int, num_frames: int) -> int:
        """Plays `action` for `num_frames` frames; returns the sum of their raw rewards.

        The screen becomes the pixelwise maximum of the last two of these frames. After the end of a
        game, nothing is played and the reward is 0, because the emulator draws no more frames.
        """
        if num_frames == 0 or self._ale.game_over():
            return 0
        if len(self._played) >= _FRAMES_BETWEEN_KEYFRAMES:
            self._set_keyframe(self._ale.cloneState(include_rng=True))
        act = self._ale.act
        *first, last = played = self._sticky(action, num_frames)
        self._played += bytes(played)
        reward = 0
        for each in first:
            reward += act(each)
        self._ale.getScreenGrayscale(self._frame_before)
        if self._pictured:
            self._ale.getScreenRGB(self._picture_before)
        reward += act(last)
        self._ale.getScreenGrayscale(self._frame)
        if first:
            np.maximum(self._frame, self._frame_before, out=self._frame)
        self._shrink()
        if self._pictured:
            self._take_picture(pooled=bool(first))
        return reward

    def get_state(self) -> tuple[dict[str, Any], list[bytes]]:
        """Returns the state, without `screen`, as a JSON-serializable dictionary and two blobs.

        The blobs are the keyframe and the actions played since the keyframe. The caller saves
        `screen` in addition.
        """
        meta = {"rng": generator_state(self.rng), "last_action": self._last_action}
        return meta, [self._keyframe.serialize(), bytes(self._played)]

    def set_state(self, meta: dict[str, Any], blobs: list[bytes], screen: Array) -> None:
        """Restores a state saved by `get_state`, and the screen that belongs to it.

        Raises:
            CheckpointError: the emulator cannot read the keyframe, or the state of the generator is
                damaged.
        """
        serialized, played = blobs
        try:
            keyframe = ale_py.ALEState(serialized)
        except (SystemError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                "the environment state is damaged: the emulator cannot read its keyframe"
            ) from error
        restore_generator(self.rng, meta["rng"])
        self._set_keyframe(keyframe)
        for action in played:
            self._ale.act(action)
        self._played += played
        self._last_action = meta["last_action"]
        self.screen[...] = screen

    def _boot(self) -> None:
        self._ale.reset_game()
        self.run(NOOP, BOOT_FRAMES)
        self._first_state = self._keyframe = self._ale.cloneState(include_rng=True)
        self._first_screen = self.screen.copy()
        self._first_picture = self.picture.copy()
        self._played.clear()

    def _set_keyframe(self, keyframe: ale_py.ALEState) -> None:
        # Two frames are drawn from the first state, so that every process has the same complete
        # pictures before the restore. They are not drawn from the current state, because the
        # emulator draws nothing once the game is over.
        self._ale.restoreState(self._first_state)
        self._ale.act(NOOP)
        self._ale.act(NOOP)
        self._ale.restoreState(keyframe)
        self._keyframe = keyframe
        self._played.clear()

    def _sticky(self, action: int, num_frames: int) -> list[int]:
        """Returns the sampled action of each frame: `action` or that of the frame before it."""
        if self._repeat_probability == 0:
            return [action] * num_frames
        played = []
        for repeats in self.rng.random(num_frames) < self._repeat_probability:
            self._last_action = self._last_action if repeats else action
            played.append(self._last_action)
        return played

    def _take_picture(self, pooled: bool) -> None:
        # Some games draw half of their moving objects in one frame and the other half in the next.
        self._ale.getScreenRGB(self.picture)
        if pooled:
            np.maximum(self.picture, self._picture_before, out=self.picture)

    def _shrink(self) -> None:
        size = (self.screen.shape[1], self.screen.shape[0])
        cv2.resize(self._frame, size, dst=self.screen, interpolation=cv2.INTER_AREA)


@cache
def _frames(height: int, width: int) -> tuple[Array, Array]:
    """Returns the buffers, uint8 [H, W], of a game's last two frames before they are pooled.

    All games of a process share these buffers. An executor steps several games in turn, and less
    memory fits better in its core's cache.
    """
    return np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)


def _load(config: AtariConfig) -> ale_py.ALEInterface:
    if config.game not in ATARI_57:
        closest = difflib.get_close_matches(config.game.lower(), ATARI_57, n=1, cutoff=0.0)
        raise ConfigError("env.game", config.game, f"no such game; the closest is {closest[0]}")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", 0)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("max_num_frames_per_episode", config.max_num_frames_per_episode)
    ale.loadROM(str(Path(roms.__file__).parent / f"{config.game}.bin"))
    return ale
