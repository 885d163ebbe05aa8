"""A match in the engine of Google Research Football, played step by step, with exact state.

This module calls the engine directly: gfootball's own environment copies every observation several
times, keeps a trace of them, and stores pickled Python objects in its states. The rules around the
engine (when an episode ends, what happens while the ball is out of play) are those of gfootball
2.10 and are tested against it.

Facts about the engine that shape this file:

* A started engine is never freed (its constructor's memory is only reused), so engines are pooled.
* `get_info` reports the engine that was stepped last in the thread, on whichever engine it is
  called.
* An episode depends on its seed alone, whatever the engine has played before.
* A state is incomplete: in 5_vs_5, every third match continues differently after a restore.
  However, all engines that are reset with the episode's seed and then restored continue alike.
* A state fits only an engine that was reset to the same scenario, which some scenarios build
  differently for even and odd episodes. A state that does not fit kills the process.
* Only one engine per process can render.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from htsrl_cli.envs.base import Array
from htsrl_cli.envs.football.config import FootballConfig
from htsrl_cli.errors import CheckpointError, ConfigError

with contextlib.redirect_stderr(io.StringIO()):  # gym warns that it is no longer maintained
    from gfootball.env import football_action_set, observation_rotation
    from gfootball.env.config import Config
import gfootball_engine

_NORMAL = int(gfootball_engine.e_GameMode.e_GameMode_Normal)
NOBODY = -1
# Steps after which a ball that nobody brings back into play is brought back here.
_PATIENCE = 20
_PHYSICS_STEPS = 10
_FRAME_WIDTH, _FRAME_HEIGHT = 1280, 720
# The first bytes of the engine's states: the length of the pickle, 0, and the phase "running", both
# as uint32.
_STATE_PREFIX = np.array([0, int(gfootball_engine.GameState.game_running)], "<u4").tobytes()


@dataclass(frozen=True)
class View:
    """The pitch as seen by one side (`own`), which plays from left to right.

    All arrays are float64. Positions are in [-1, 1] x [-0.42, 0.42].

    Attributes:
        ball: [3]; its position.
        ball_direction: [3]; its movement per env step.
        ball_owned_team: 0 for the own side, 1 for the other side, -1 for nobody.
        ball_owned_player: index in its side of the player who has the ball.
        own, other: [players, 2]; the players' positions.
        own_direction, other_direction: [players, 2]; their movements per env step.
        controlled: index in `own` of each controlled player.
        game_mode: 0 in normal play, else the number of a kick-off, corner kick and so on.
    """

    ball: Array
    ball_direction: Array
    ball_owned_team: int
    ball_owned_player: int
    own: Array
    own_direction: Array
    other: Array
    other_direction: Array
    controlled: tuple[int, ...]
    game_mode: int

    def rotated(self, controlled: tuple[int, ...]) -> View:
        """Returns the other side's view; `controlled` are its controlled players."""
        half_turn = np.array([-1.0, -1.0, 1.0])
        owner = self.ball_owned_team
        return replace(
            self,
            ball=self.ball * half_turn,
            ball_direction=self.ball_direction * half_turn,
            ball_owned_team=owner if owner == NOBODY else 1 - owner,
            own=-self.other,
            own_direction=-self.other_direction,
            other=-self.own,
            other_direction=-self.own_direction,
            controlled=controlled,
        )


class Match:
    """A running match.

    Args:
        config: the section `env`.
        rendered: True if `frame` will be called.

    Attributes:
        score: goals of the left side, goals of the right side.
        over: True after an event that ends an episode of the scenario.
        out_of_time: True when the scenario's duration has been played.

    Raises:
        ConfigError: the scenario has fewer controllable players.
    """

    def __init__(self, config: FootballConfig, rendered: bool) -> None:
        players = f"left_players={config.num_left_players},right_players={config.num_right_players}"
        # Config sets missing keys once, from the first seed, and would keep that side for good.
        fixed = {"game_engine_random_seed": 0, "reverse_team_processing": False}
        self._settings = Config(fixed | {"level": config.scenario, "players": [f"agent:{players}"]})
        _check_players(config, self._settings.ScenarioConfig())
        self._sides = [(True, i) for i in range(config.num_left_players)]
        self._sides += [(False, i) for i in range(config.num_right_players)]
        self._left_actions = football_action_set.get_action_set(self._settings)
        self._right_actions = [
            observation_rotation.flip_single_action(action, self._settings)
            for action in self._left_actions
        ]
        self._rendered = rendered
        self._engine = _take_engine(rendered)
        self._seed = 0
        self.score = (0, 0)
        self.over = self.out_of_time = False
        self._mode_before = self._owner_before = NOBODY

    def start(self, seed: int) -> None:
        """Begins an episode that depends on `seed` alone."""
        self._seed = seed
        # In some scenarios, the sides take turns to begin an episode.
        by_seed = {"game_engine_random_seed": seed, "episode_number": seed // 2 % 2}
        self._settings.update(by_seed | {"reverse_team_processing": seed % 2 == 1})
        self._settings.NewScenario(inc=0)
        self._scenario = self._settings.ScenarioConfig()
        self._engine.state = gfootball_engine.GameState.game_running
        self._engine.reset(self._scenario, False)
        self._mode_before = self._owner_before = NOBODY
        while not self._look():
            self._engine.step()
        self.over = self.out_of_time = False

    def play(self, actions: list[int]) -> None:
        """Plays one env step: a tenth of a second, and on until the ball is in play.

        Args:
            actions: the controlled players' actions, left players first; directions are relative
                to each side's own view.
        """
        for (is_left, index), action in zip(self._sides, actions, strict=True):
            chosen = (self._left_actions if is_left else self._right_actions)[action]
            chosen = self._unless_waiting(chosen, is_left, index)
            self._engine.perform_action(chosen._backend_action, is_left, index)
        self._engine.step()
        while not self._look():
            self._engine.step()
        self._judge()

    def view(self, is_left: bool) -> View:
        """Returns a side's view after the last env step."""
        return self._view if is_left else self._view.rotated(self._right_controlled)

    def frame(self) -> Array:
        """Returns the rendered picture, uint8 [720, 1280, 3], RGB; for rendered matches only."""
        pixels = np.frombuffer(self._engine.get_frame(), np.uint8)
        # The engine's first row is the bottom one.
        return pixels.reshape(_FRAME_HEIGHT, _FRAME_WIDTH, 3)[::-1]

    def get_state(self) -> tuple[dict[str, Any], bytes]:
        """Returns JSON-serializable values, and the engine's own state of 30 to 80 KB.

        This match continues exactly like restored ones only after its own `set_state`.
        """
        meta = {
            "seed": self._seed,
            "mode_before": self._mode_before,
            "owner_before": self._owner_before,
            "over": self.over,
            "out_of_time": self.out_of_time,
        }
        return meta, self._engine.get_state(b"")

    def set_state(self, meta: dict[str, Any], state: bytes) -> None:
        """Restores a state saved by `get_state`, in any process.

        A state that is damaged after its first bytes kills the process.

        Raises:
            CheckpointError: the bytes are not a state of the engine.
        """
        if not state.startswith(_STATE_PREFIX):
            raise CheckpointError("the football state is damaged: it has no state of the engine")
        self.start(meta["seed"])
        self._engine.set_state(state)
        self._read(self._engine.get_info())
        self._mode_before, self._owner_before = meta["mode_before"], meta["owner_before"]
        self.over, self.out_of_time = meta["over"], meta["out_of_time"]

    def close(self) -> None:
        """Returns the engine to the pool, for the next match."""
        _IDLE[self._rendered].append(self._engine)

    def _unless_waiting(self, action: Any, is_left: bool, index: int) -> Any:
        """Returns `action`, or one that brings back a ball that has been out of play for long."""
        waiting, view = self._engine.waiting_for_game_count, self._view
        if waiting < _PATIENCE:
            return action
        if waiting == _PATIENCE:
            return football_action_set.action_short_pass
        controlled = view.controlled if is_left else self._right_controlled
        owns_ball = view.ball_owned_team == (0 if is_left else 1)
        if not owns_ball or controlled[index] != view.ball_owned_player:
            return football_action_set.action_idle
        if (waiting < _PATIENCE + 10) != is_left:
            return football_action_set.action_left
        return football_action_set.action_right

    def _look(self) -> bool:
        """Reads the state of the match if the ball is in play; returns True if it is."""
        info = self._engine.get_info()
        if info.is_in_play:
            self._read(info)
        return bool(info.is_in_play)

    def _read(self, info: Any) -> None:
        """Reads the engine's report into `score` and the views."""
        own, own_direction = _team(info.left_team)
        other, other_direction = _team(info.right_team)
        left, right = self._scenario.left_agents, self._scenario.right_agents
        ball, direction = info.ball_position, info.ball_direction
        self._view = View(
            ball=np.array([ball[0], ball[1], ball[2]]),
            ball_direction=np.array([direction[0], direction[1], direction[2]]),
            ball_owned_team=info.ball_owned_team,
            ball_owned_player=info.ball_owned_player,
            own=own,
            own_direction=own_direction,
            other=other,
            other_direction=other_direction,
            controlled=_controlled(info.left_controllers, left),
            game_mode=int(info.game_mode),
        )
        self._right_controlled = _controlled(info.right_controllers, right)
        self.score = (info.left_goals, info.right_goals)
        self._step = info.step

    def _judge(self) -> None:
        """Applies the scenario's rules for the end of an episode."""
        rules, mode, owner = self._scenario, self._view.game_mode, self._view.ball_owned_team
        stopped = mode != _NORMAL and self._mode_before == _NORMAL
        lost = NOBODY not in (owner, self._owner_before) and owner != self._owner_before
        self.over = (
            (rules.end_episode_on_score and max(self.score) > 0)
            or (rules.end_episode_on_out_of_play and stopped)
            or (rules.end_episode_on_possession_change and lost)
        )
        self._mode_before = mode
        if owner != NOBODY:
            self._owner_before = owner
        waiting = self._engine.waiting_for_game_count
        self._engine.waiting_for_game_count = 0 if mode == _NORMAL else waiting + 1
        self.out_of_time = self._step >= rules.game_duration


# Engines without a match, by whether they render.
_IDLE: dict[bool, list[Any]] = {False: [], True: []}
# This process's rendering engine, idle or not.
_RENDERING: list[Any] = []


def _take_engine(rendered: bool) -> Any:
    if _IDLE[rendered]:
        return _IDLE[rendered].pop()
    # A second rendering engine would silently corrupt the pictures of the first.
    assert not (rendered and _RENDERING), "a process can render one match"
    engine = gfootball_engine.GameEnv()
    engine.game_config.physics_steps_per_frame = _PHYSICS_STEPS
    engine.game_config.render_resolution_x = _FRAME_WIDTH
    engine.game_config.render_resolution_y = _FRAME_HEIGHT
    engine.game_config.render = rendered
    engine.start_game()
    if rendered:
        _RENDERING.append(engine)
    return engine


def _check_players(config: FootballConfig, scenario: Any) -> None:
    limits = {
        "num_left_players": scenario.controllable_left_players,
        "num_right_players": scenario.controllable_right_players,
    }
    for key, most in limits.items():
        count = getattr(config, key)
        if count > most:
            remedy = f"at most {most} can be controlled on this side of {config.scenario}"
            raise ConfigError(f"env.{key}", count, remedy)


def _team(players: Any) -> tuple[Array, Array]:
    """Returns positions and directions, each float64 [players, 2]."""
    seen = [(player.position, player.direction) for player in players]
    table = np.array([(at[0], at[1], to[0], to[1]) for at, to in seen])
    return table[:, :2], table[:, 2:]


def _controlled(controllers: Any, count: int) -> tuple[int, ...]:
    return tuple(controllers[i].controlled_player for i in range(count))
