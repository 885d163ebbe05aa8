"""Google Research Football: observations, rewards, and the ends of episodes.

A saved state is a *keyframe* (an earlier state of the match) and the actions played since the
keyframe. The engine's states are incomplete. When a keyframe is taken, the running match itself is
therefore restored from it, so that the match continues exactly as after a later restore.

Observations and rewards are those of gfootball's own wrappers (Kurach et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.football.config import FootballConfig
from htsrl_cli.envs.football.match import NOBODY, Match, View
from htsrl_cli.envs.football.pitch import draw_pitch
from htsrl_cli.envs.state import check_fit, pack_state, unpack_state

NUM_ACTIONS = 19
HEIGHT, WIDTH = 72, 96
# The shape of one frame, by representation.
_SHAPES: dict[str, tuple[int, ...]] = {
    "extracted": (HEIGHT, WIDTH, 4),
    "simple115v2": (115,),
    "pixels_gray": (HEIGHT, WIDTH, 1),
    "pixels": (HEIGHT, WIDTH, 3),
}
# The super minimap covers x in [-1, 1] and y in [-1/2.25, 1/2.25].
_MAP_LOW = np.array([-1.0, -1 / 2.25])
_MAP_SPAN = np.array([2.0, 1 / 2.25 + 1 / 2.25])
_MAP_CELLS = np.array([WIDTH, HEIGHT])
_MARK = 255
_MOST_PLAYERS = 11
_NUM_GAME_MODES = 7
# Taking a keyframe takes 10 to 30 ms. Replaying this number of env steps takes 1 to 3 s. Academy
# episodes are shorter and need no keyframe.
STEPS_BETWEEN_KEYFRAMES = 500
_NUM_CHECKPOINTS = 10
_CHECKPOINT_REWARD = 0.1


class FootballEnv:
    """A scenario of Google Research Football, with a column for each controlled player.

    Each player has its own observation: uint8 [72, 96, channels x frame_stack] for images, float32
    [115 x frame_stack] for `simple115v2`. The newest frame is last. An episode that is not over
    after the scenario's duration is truncated. The raw score is the goal difference of the left
    side if one of its players is controlled, otherwise the goal difference of the right side.

    Args:
        config: the section `env`.
        renderer: what `render` returns: `pitch` (a drawing of the pitch from above) or `engine`
            (the engine's own picture); None if `render` will not be called.

    Attributes:
        frame_rate: env steps per second at the game's normal speed.

    Raises:
        ConfigError: the scenario has fewer controllable players than `config` asks for.
    """

    frame_rate = 10.0

    def __init__(self, config: FootballConfig, renderer: str | None = None) -> None:
        self._config = config
        self._by_engine = renderer == "engine"
        self._match = Match(config, rendered=config.is_rendered or self._by_engine)
        self._frame: Array | None = None
        self._is_left = [True] * config.num_left_players + [False] * config.num_right_players
        *shape, depth = _SHAPES[config.representation]
        self.env_spec = EnvSpec(
            obs_shape=(*shape, depth * config.frame_stack),
            obs_dtype="float32" if config.representation == "simple115v2" else "uint8",
            actions=ActionSpec("categorical", sizes=(NUM_ACTIONS,)),
            num_players=config.num_columns,
        )
        # The last `frame_stack` frames of all players, [P, *shape, depth] each, newest last.
        self._frames: list[Array] = []
        self._depth = depth
        # The number of checkpoints for which each player has been rewarded.
        self._collected = [0] * config.num_columns
        self._length = 0
        self._keyframe: tuple[dict[str, Any], list[bytes]] = ({}, [])
        self._played = bytearray()

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins an episode that `seed` determines."""
        self._start(seed)
        self._keyframe = ({"seed": seed}, [])
        self._played.clear()
        return self._shown(), {}

    def step(self, action: Array) -> tuple[Array, float | Array, bool, bool, dict[str, Any]]:
        """Plays a tenth of a second, extended if necessary until the ball is in play."""
        rewards = self._play(action.reshape(-1).tolist())
        terminated = self._match.over
        truncated = self._match.out_of_time and not terminated
        info = {}
        if terminated or truncated:
            info["episode"] = {"r": self.score, "l": self._length}
        reward = rewards if len(rewards) > 1 else float(rewards[0])
        return self._shown(), reward, terminated, truncated, info

    def get_state(self) -> bytes:
        """Returns the last keyframe and the actions played since then."""
        meta, blobs = self._keyframe
        return pack_state("football", self._identity() | meta, [bytes(self._played), *blobs])

    def set_state(self, state: bytes) -> Array:
        """Restores a state that `get_state` returned in any process; returns the observations.

        Raises:
            CheckpointError: the bytes are damaged, or belong to another scenario, representation,
                frame stack, kind of rewards or number of players.
        """
        meta, (played, *blobs) = unpack_state("football", state)
        check_fit("football", meta, self._identity())
        self._played.clear()
        if blobs:
            self._restore(meta, blobs)
        else:
            self._start(meta["seed"])
        self._keyframe = (meta, blobs)
        for start in range(0, len(played), len(self._is_left)):
            self._play(list(played[start : start + len(self._is_left)]))
        return self._shown()

    @property
    def score(self) -> float:
        """The goal difference, from the point of view of the first controlled player's side."""
        return float(self._goal_difference() * (1 if self._is_left[0] else -1))

    def render(self) -> Array:
        """Returns a drawing, uint8 [640, 960, 3], or the engine's picture, uint8 [720, 1280, 3]."""
        if self._frame is not None:
            return self._frame
        right = self._match.view(is_left=False)
        return draw_pitch(
            self._match.view(is_left=True), right.controlled, self._match.score, self._length
        )

    def close(self) -> None:
        """Releases the engine, so that the next environment of this process can reuse it."""
        self._match.close()

    def _start(self, seed: int) -> None:
        self._match.start(seed)
        self._collected = [0] * len(self._is_left)
        self._length = 0
        self._take_frame()
        self._frames = [self._observe()] * self._config.frame_stack

    def _play(self, actions: list[int]) -> Array:
        """Plays one env step; returns the rewards of the P controlled players, float32 [P]."""
        difference = self._goal_difference()
        self._match.play(actions)
        self._played += bytes(actions)
        self._length += 1
        self._take_frame()
        rewards = self._rewards(self._goal_difference() - difference)
        self._frames = [*self._frames[1:], self._observe()]
        if self._length % STEPS_BETWEEN_KEYFRAMES == 0:
            self._take_keyframe()
        return rewards

    def _take_frame(self) -> None:
        # Call this before taking a keyframe, which leaves a picture of the kick-off in the engine.
        if self._by_engine:
            self._frame = self._match.frame()

    def _take_keyframe(self) -> None:
        """Takes a keyframe and restores the match from it.

        The match then continues exactly as it would after a later restore of this keyframe.
        """
        meta, engine = self._match.get_state()
        meta |= {"collected": list(self._collected), "length": self._length}
        self._keyframe = (meta, [engine, self._stacked().tobytes()])
        self._played.clear()
        self._restore(*self._keyframe)

    def _restore(self, meta: dict[str, Any], blobs: list[bytes]) -> None:
        engine, stack = blobs
        self._match.set_state(meta, engine)
        shape = (self._config.num_columns, *self.env_spec.obs_shape)
        stacked = np.frombuffer(stack, self.env_spec.obs_dtype).reshape(shape)
        parts = np.split(stacked, self._config.frame_stack, axis=-1)
        self._frames = [np.ascontiguousarray(part) for part in parts]
        self._collected, self._length = list(meta["collected"]), meta["length"]

    def _goal_difference(self) -> int:
        left, right = self._match.score
        return left - right

    def _rewards(self, scored: int) -> Array:
        """Returns the rewards of the P controlled players for one env step, float32 [P].

        Args:
            scored: change of the left side's goal difference in this env step.
        """
        rewards = np.array([scored if left else -scored for left in self._is_left], np.float32)
        if "checkpoints" not in self._config.rewards:
            return rewards
        for player, (view, active) in enumerate(self._seen()):
            if rewards[player] == 1:
                # A goal also pays for the checkpoints that the player has not reached yet.
                rewards[player] += _CHECKPOINT_REWARD * (_NUM_CHECKPOINTS - self._collected[player])
                self._collected[player] = _NUM_CHECKPOINTS
            elif view.ball_owned_team == 0 and view.ball_owned_player == active:
                reached = _reached(view)
                while self._collected[player] < reached:
                    rewards[player] += _CHECKPOINT_REWARD
                    self._collected[player] += 1
        return rewards

    def _seen(self) -> Iterator[tuple[View, int]]:
        """Yields the view of each controlled player's side, and the player's index in its team."""
        sides = {is_left: self._match.view(is_left) for is_left in set(self._is_left)}
        counts = {True: 0, False: 0}
        for is_left in self._is_left:
            yield sides[is_left], sides[is_left].controlled[counts[is_left]]
            counts[is_left] += 1

    def _observe(self) -> Array:
        """Returns the newest frame of each of the P controlled players, [P, *shape, depth]."""
        representation = self._config.representation
        if representation == "extracted":
            return np.stack([_minimap(view, active) for view, active in self._seen()])
        if representation == "simple115v2":
            return np.stack([_features(view, active) for view, active in self._seen()])
        picture = self._match.frame()
        if representation == "pixels_gray":
            picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        return np.stack([small.reshape(HEIGHT, WIDTH, self._depth)] * len(self._is_left))

    def _stacked(self) -> Array:
        """Returns the last `frame_stack` frames of each player, joined along the last axis.

        Returns:
            [P, *shape, depth * frame_stack], newest frame last.
        """
        dtype = np.dtype(self.env_spec.obs_dtype)
        # Each pixel is viewed as one item: otherwise, NumPy would copy its values one by one.
        pixel = np.dtype((np.void, self._depth * dtype.itemsize))
        return np.concatenate([frame.view(pixel) for frame in self._frames], axis=-1).view(dtype)

    def _shown(self) -> Array:
        """Returns `_stacked()`, without the players' axis if there is only one player."""
        stacked = self._stacked()
        return stacked if len(stacked) > 1 else stacked[0]

    def _identity(self) -> dict[str, Any]:
        config = self._config
        return {
            "scenario": config.scenario,
            "representation": config.representation,
            "frame_stack": config.frame_stack,
            "rewards": config.rewards,
            "num_left_players": config.num_left_players,
            "num_right_players": config.num_right_players,
        }


def make_football_env(config: FootballConfig, index: int, renderer: str | None) -> FootballEnv:
    """Builds a `FootballEnv`; `index` has no effect.

    Raises:
        ConfigError: as for `FootballEnv`.
    """
    return FootballEnv(config, renderer)


def _reached(view: View) -> int:
    """Returns how many of the ten reward checkpoints the ball has reached.

    A reward checkpoint is a distance to the opponents' goal. The ball has reached it if the ball is
    now at this distance or closer.
    """
    distance = ((view.ball[0] - 1) ** 2 + view.ball[1] ** 2) ** 0.5
    thresholds = (0.99 - 0.8 / (_NUM_CHECKPOINTS - 1) * i for i in range(_NUM_CHECKPOINTS))
    return sum(distance <= threshold for threshold in thresholds)


def _minimap(view: View, active: int) -> Array:
    """Draws the super minimap of player `active`, uint8 [72, 96, 4].

    The channels show, in this order: the own side, the other side, the ball, and player `active`.
    """
    image = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    itself = view.own[[active]] if active != NOBODY else view.own[:0]
    layers = (view.own, view.other, view.ball[None, :2], itself)
    cells = ((np.concatenate(layers) - _MAP_LOW) / _MAP_SPAN * _MAP_CELLS).astype(np.int64)
    x, y = cells.clip(0, _MAP_CELLS - 1).T
    image[y, x, np.repeat(range(4), [len(points) for points in layers])] = _MARK
    return image


def _features(view: View, active: int) -> Array:
    """Returns the observation `simple115v2` of player `active`, float32 [115]."""
    teams = np.full((4, 2 * _MOST_PLAYERS), -1.0)
    for row, points in enumerate((view.own, view.own_direction, view.other, view.other_direction)):
        teams[row, : points.size] = points.reshape(-1)
    return np.concatenate(
        [
            teams.reshape(-1),
            view.ball,
            view.ball_direction,
            np.eye(3)[view.ball_owned_team + 1],
            np.eye(_MOST_PLAYERS + 1)[active][:-1],  # all zeros for NOBODY (-1)
            np.eye(_NUM_GAME_MODES)[view.game_mode],
        ]
    ).astype(np.float32)
