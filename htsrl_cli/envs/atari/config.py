"""The keys of `env=atari/<game>`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.rules import BELOW_ONE, COUNT, INDEX, Rule, Rules
from htsrl_cli.plugins import Kind

_GAME = Rule(
    lambda value: re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", value) is not None,
    "must be the name of a game in snake case, such as space_invaders",
)
# The Nature CNN's convolutions (8/4, 4/2, 3/1) have no output for a smaller image.
_SMALLEST_SCREEN = 36
_SCREEN = Rule(lambda value: value >= _SMALLEST_SCREEN, f"must be {_SMALLEST_SCREEN} or more")


@dataclass(frozen=True)
class AtariConfig(EnvConfig):
    """An Atari game; keys are named as in the Arcade Learning Environment (Machado et al., 2018).

    Attributes:
        game: name of the ROM in snake case, for example `space_invaders`.
        frame_skip: emulator frames per env step.
        screen_size: side of the square grayscale observation, in pixels.
        frame_stack: number of screens in an observation, uint8 [H, W, frame_stack].
        noop_max: a game begins with 0 to `noop_max` no-ops (uniform).
        fire_on_reset: press FIRE after a reset or a lost life, if it is a minimal action.
        repeat_action_probability: probability of sticky actions; 0 turns them off.
        full_action_space: use all 18 actions instead of the game's minimal set.
        max_num_frames_per_episode: emulator frames after which a game is truncated.
        reward_clipping: train on the sign of the reward.
        terminal_on_life_loss: a lost life terminates the training episode, but not the game.
    """

    rules: ClassVar[Rules] = {
        "game": _GAME,
        "frame_skip": COUNT,
        "screen_size": _SCREEN,
        "frame_stack": COUNT,
        "noop_max": INDEX,
        "repeat_action_probability": BELOW_ONE,
        "max_num_frames_per_episode": COUNT,
        **EnvConfig.rules,
    }
    label_key: ClassVar[str] = "game"
    restores_exactly: ClassVar[bool] = True
    install_hint: ClassVar[str] = "pip install ale-py opencv-python-headless"
    renderers: ClassVar[tuple[str, ...]] = ("screen",)
    # Fewer processes disturb each other's caches less: on 2 cores of an AMD Zen 3, one executor
    # instead of two gave Pong 4 % more env steps per second with PPO and 8 % with A2C.
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
