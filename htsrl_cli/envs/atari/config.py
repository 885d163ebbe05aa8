"""The keys of `env=atari/<game>`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.rules import BELOW_ONE, COUNT, INDEX, Rule, Rules, between, count_to
from htsrl_cli.plugins import Kind

_GAME = Rule(
    lambda value: re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", value) is not None,
    "must be the name of a game in snake case, such as space_invaders",
)
# The Nature CNN's convolutions (kernel/stride 8/4, 4/2, 3/1) have no output for a smaller image.
_SMALLEST_SCREEN = 36
_SCREEN = between(_SMALLEST_SCREEN, 1024)


@dataclass(frozen=True)
class AtariConfig(EnvConfig):
    """A game of the Arcade Learning Environment (Machado et al., 2018).

    Attributes:
        game: name of the ROM in snake case, for example `space_invaders`.
        frame_skip: emulator frames per env step.
        screen_size: width and height of the grayscale observation, in pixels.
        frame_stack: number of latest screens in an observation, whose shape is
            [H, W, `frame_stack`].
        noop_max: maximum number of no-op frames at the beginning of a game; the actual number is
            sampled uniformly from 0 to `noop_max`.
        fire_on_reset: press FIRE after every reset and every lost life, if FIRE is in the game's
            minimal action set.
        repeat_action_probability: probability that a frame repeats the action of the frame before
            it (sticky actions); 0 turns sticky actions off.
        full_action_space: use all 18 actions instead of the game's minimal set.
        max_num_frames_per_episode: number of emulator frames after which a game is truncated.
        reward_clipping: train on the sign of the reward (-1, 0 or 1).
        terminal_on_life_loss: let a lost life terminate the training episode, but not the game.
    """

    rules: ClassVar[Rules] = {
        "game": _GAME,
        "frame_skip": COUNT,
        "screen_size": _SCREEN,
        "frame_stack": count_to(100),
        "noop_max": INDEX,
        "repeat_action_probability": BELOW_ONE,
        "max_num_frames_per_episode": COUNT,
        **EnvConfig.rules,
    }
    label_key: ClassVar[str] = "game"
    restores_exactly: ClassVar[bool] = True
    install_hint: ClassVar[str] = "pip install ale-py opencv-python-headless"
    renderers: ClassVar[tuple[str, ...]] = ("screen",)
    # With fewer executors, less data is evicted from the caches. On 2 cores of an AMD Zen 3, Pong
    # ran at more env steps per second with one executor than with two: 4 % more with PPO, 8 % more
    # with A2C.
    cores_per_executor: ClassVar[int] = 2
    state_package: ClassVar[str | None] = "ale-py"

    game: str
    frame_skip: int
    screen_size: int
    frame_stack: int
    noop_max: int
    fire_on_reset: bool
    repeat_action_probability: float
    full_action_space: bool
    max_num_frames_per_episode: int
    reward_clipping: bool
    terminal_on_life_loss: bool


KIND = Kind(AtariConfig, "htsrl_cli.envs.atari.environment:make_atari_env")
