"""A match in the engine of Google Research Football, whose state can be restored exactly.

This module calls the engine directly: gfootball's own environment copies every observation several
times, keeps a trace of them, and stores pickled Python objects in its states. The rules around the
engine (when an episode ends, what happens while the ball is out of play) are those of gfootball
2.10 and are tested against it.

Facts about the engine that shape this file:

* The memory of a started engine is never freed, so engines are kept in a pool and reused.
* `get_info` reports on the engine that was stepped last in the thread, whichever engine it is
  called on.
* An episode depends on nothing but its seed and the actions, whatever the engine has played before.
* A saved state is incomplete: in 5_vs_5, one match in three continues differently after a restore.
  However, all engines that are reset with the episode's seed and then restored continue alike.
* A saved state fits only an engine that was reset to the same scenario. Some scenarios are built
  differently for even and odd episodes. Restoring a state that does not fit kills the process.
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
# Env steps after which this module puts the ball back into play, if no player has done so.
_PATIENCE = 20
_PHYSICS_STEPS = 10
_FRAME_WIDTH, _FRAME_HEIGHT = 1280, 720
# The first bytes of every state of the engine: the length of the pickled data (0) and the phase
# (`game_running`), each as a uint32.
_STATE_PREFIX = np.array([0, int(gfootball_engine.GameState.game_running)], "<u4").tobytes()


@dataclass(frozen=True)
class View:
    """The pitch as seen by one side (`own`), which plays from left to right.

    All arrays are float64. Positions are in [-1, 1] x [-0.42, 0.42].

    Attributes:
        ball: [3]; the ball's position.
        ball_direction: [3]; the ball's movement per env step.
        ball_owned_team: 0 for the own side, 1 for the other side, -1 for nobody.
        ball_owned_player: index, within the side, of the player who has the ball; -1 for nobody.
        own, other: [players, 2]; the players' positions.
        own_direction, other_direction: [players, 2]; the players' movements per env step.
        controlled: index in `own` of each controlled player.
        game_mode: 0 in normal play, otherwise the engine's number for a kick-off, a corner kick and
            so on.
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
        """Returns the other side's view; `controlled` are the indices of its controlled players."""
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
        score: goals of the left side and goals of the right side.
        over: True after an event that ends an episode of the scenario.
        out_of_time: True when the scenario's duration has been played.

    Raises:
        ConfigError: the scenario has fewer controllable players than `config` asks for.
    """

    def __init__(self, config: FootballConfig, rendered: bool) -> None:
        players = f"left_players={config.num_left_players},right_players={config.num_right_players}"
        # If one of these keys were missing, Config would set it once, from the first seed, and keep
        # the value for all episodes.
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
        """Begins an episode that depends on nothing but `seed` and the actions."""
        self._seed = seed
        # In some scenarios, the parity of the episode's number decides which side begins.
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
        """Plays one env step: a tenth of a second, extended if necessary until the ball is in play.

        Args:
            actions: the controlled players' actions, left players first. Directions are relative
                to the view of the player's side.
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
        """Returns what the left or the right side knows of the match after the last env step."""
        return self._view if is_left else self._view.rotated(self._right_controlled)

    def frame(self) -> Array:
        """Returns the rendered picture, uint8 [720, 1280, 3], RGB; for rendered matches only."""
        pixels = np.frombuffer(self._engine.get_frame(), np.uint8)
        # The first row of the engine's picture is the bottom row.
        return pixels.reshape(_FRAME_HEIGHT, _FRAME_WIDTH, 3)[::-1]

    def get_state(self) -> tuple[dict[str, Any], bytes]:
        """Returns JSON-serializable values, and the engine's own state of 30 to 80 KB.

        To continue exactly like a restored match, this match must itself be restored (`set_state`).
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
        """Restores a state that `get_state` returned in any process.

        Only the first bytes of `state` are checked; damage to later bytes can kill the process.

        Raises:
            CheckpointError: `state` does not begin like a state of the engine.
        """
        if not state.startswith(_STATE_PREFIX):
            raise CheckpointError("the football state is damaged: it holds no state of the engine")
        self.start(meta["seed"])
        self._engine.set_state(state)
        self._read(self._engine.get_info())
        self._mode_before, self._owner_before = meta["mode_before"], meta["owner_before"]
        self.over, self.out_of_time = meta["over"], meta["out_of_time"]

    def close(self) -> None:
        """Returns the engine to the pool, for the next match."""
        _IDLE[self._rendered].append(self._engine)

    def _unless_waiting(self, action: Any, is_left: bool, index: int) -> Any:
        """Returns the action that the engine plays for a player: normally `action`.

        If normal play has been interrupted for many env steps (for a kick-off, a corner kick and so
        on), `action` is replaced so that normal play resumes.
        """
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
        """Returns True if the ball is in play; if so, passes the engine's report to `_read`."""
        info = self._engine.get_info()
        if info.is_in_play:
            self._read(info)
        return bool(info.is_in_play)

    def _read(self, info: Any) -> None:
        """Updates `score`, both sides' views and the step count from the engine's report."""
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
        """Sets `over` and `out_of_time` by the scenario's rules for the end of an episode.

        Also counts the consecutive env steps for which normal play has been interrupted (for a
        kick-off, a corner kick and so on).
        """
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


# Engines that no match uses. The key is True for engines that render.
_IDLE: dict[bool, list[Any]] = {False: [], True: []}
# The rendering engine of this process, whether or not a match uses it; one entry at most.
_RENDERING: list[Any] = []


def _take_engine(rendered: bool) -> Any:
    if _IDLE[rendered]:
        return _IDLE[rendered].pop()
    # A second rendering engine would silently corrupt the pictures of the first.
    assert not (rendered and _RENDERING), "a process can render only one match"
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
            remedy = (
                f"must be at most {most}, the number of controllable players on this side of "
                f"{config.scenario}"
            )
            raise ConfigError(f"env.{key}", count, remedy)


def _team(players: Any) -> tuple[Array, Array]:
    """Returns the players' positions and movements per env step, float64 [players, 2] each."""
    seen = [(player.position, player.direction) for player in players]
    table = np.array([(at[0], at[1], to[0], to[1]) for at, to in seen])
    return table[:, :2], table[:, 2:]


def _controlled(controllers: Any, count: int) -> tuple[int, ...]:
    return tuple(controllers[i].controlled_player for i in range(count))
