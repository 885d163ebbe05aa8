"""A match in the engine of Google Research Football, played step by step, with exact state.

The engine is driven directly: `gfootball`'s own environment copies every observation several times,
keeps a trace of them, and stores Python objects as pickles in its states. The rules around the
engine (when an episode ends, what happens while the ball is out of play) are those of gfootball
2.10 and are tested against it.

Facts about the engine that shape this file:

* A started engine is never freed (its constructor's memory is only reused), so engines are pooled.
* `get_info` reports the engine that was stepped last in the thread, whichever it is asked of.
* An episode is a function of its seed, whatever the engine has played before.
* A state is not all there is: in 5_vs_5 every third match goes on otherwise once it is restored.
  But what is restored to an engine that was reset with the episode's seed goes on alike everywhere.
* A state fits only an engine that was reset to the same scenario, which some scenarios build
  differently for even and odd episodes; a state that does not fit ends the process.
* Only one engine of a process can render.
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

with contextlib.redirect_stderr(io.StringIO()):  # gym says that it is not maintained any more
    from gfootball.env import football_action_set, observation_rotation
    from gfootball.env.config import Config
import gfootball_engine

_NORMAL = int(gfootball_engine.e_GameMode.e_GameMode_Normal)
NOBODY = -1
# The ball is out of play and nobody brings it back: after so many steps the engine is helped.
_PATIENCE = 20
_PHYSICS_STEPS = 10
_FRAME_WIDTH, _FRAME_HEIGHT = 1280, 720
# How the engine's states begin: no pickle (its length, uint32), in the phase "running" (uint32).
_STATE_PREFIX = np.array([0, int(gfootball_engine.GameState.game_running)], "<u4").tobytes()


@dataclass(frozen=True)
class View:
    """The pitch as one side sees it, which plays from left to right.

    Positions are in [-1, 1] x [-0.42, 0.42], as float64; `own` is the side that sees.

    Attributes:
        ball: [3], ball_direction: [3], per env step.
        ball_owned_team: 0 for the own side, 1 for the other, -1 for nobody.
        ball_owned_player: index of the player of that side.
        own, other: [players, 2]; own_direction, other_direction: the same, per env step.
        controlled: index in `own` of each controlled player.
        game_mode: 0 in normal play; kick-off, corner and so on otherwise.
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
        """The same for the other side, of whose players `controlled` are controlled."""
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
    """A running match: starts, plays and restores it.

    Attributes:
        score: goals of the left side, goals of the right side.
        over: an event that ends the scenario's episode has happened.
        out_of_time: the scenario's duration has been played.

    Raises:
        ConfigError: the scenario does not let so many players be controlled.
    """

    def __init__(self, config: FootballConfig, rendered: bool) -> None:
        players = f"left_players={config.num_left_players},right_players={config.num_right_players}"
        # Config fills in what is missing, once and for all: the first seed's side would stay.
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
        """Begins an episode that is a function of `seed` alone."""
        self._seed = seed
        # Some scenarios let the sides begin by turns, episode after episode.
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
        """One env step, a tenth of a second, and as long as the ball is out of play after that.

        Args:
            actions: of the controlled players, left ones first; directions as their side sees them.
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
        """Returns what a side sees after the last step."""
        return self._view if is_left else self._view.rotated(self._right_controlled)

    def frame(self) -> Array:
        """The rendered picture, uint8 [720, 1280, 3], where the match is rendered."""
        pixels = np.frombuffer(self._engine.get_frame(), np.uint8)
        # Rows come bottom up.
        return pixels.reshape(_FRAME_HEIGHT, _FRAME_WIDTH, 3)[::-1]

    def get_state(self) -> tuple[dict[str, Any], bytes]:
        """JSON-able figures, and the engine's own state of 30 to 80 KB.

        The match itself goes on exactly like its copies only from a `set_state` of its own.
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
        """Restores `get_state`, in any process.

        Raises:
            CheckpointError: this is no state of the engine. Of one that is damaged deeper inside,
                the process ends.
        """
        if not state.startswith(_STATE_PREFIX):
            raise CheckpointError("the football state is damaged: it holds no state of the engine")
        self.start(meta["seed"])
        self._engine.set_state(state)
        self._read(self._engine.get_info())
        self._mode_before, self._owner_before = meta["mode_before"], meta["owner_before"]
        self.over, self.out_of_time = meta["over"], meta["out_of_time"]

    def close(self) -> None:
        """Leaves the engine to the next match."""
        _IDLE[self._rendered].append(self._engine)

    def _unless_waiting(self, action: Any, is_left: bool, index: int) -> Any:
        """`action`, or what brings the ball back into play when it has been out for long."""
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
        """Reads what there is to see if the ball is in play; returns whether it is."""
        info = self._engine.get_info()
        if info.is_in_play:
            self._read(info)
        return bool(info.is_in_play)

    def _read(self, info: Any) -> None:
        """Takes in what the engine reports."""
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
        """Decides by the scenario's rules whether the episode is over."""
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


# Engines without a match: those that render, and those that do not.
_IDLE: dict[bool, list[Any]] = {False: [], True: []}
# The engine of this process that renders, idle or not.
_RENDERING: list[Any] = []


def _take_engine(rendered: bool) -> Any:
    if _IDLE[rendered]:
        return _IDLE[rendered].pop()
    # A second one would spoil the first's pictures, without a word.
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
            remedy = f"{config.scenario} lets at most {most} be controlled there"
            raise ConfigError(f"env.{key}", count, remedy)


def _team(players: Any) -> tuple[Array, Array]:
    """Positions and directions, float64 [players, 2]."""
    seen = [(player.position, player.direction) for player in players]
    table = np.array([(at[0], at[1], to[0], to[1]) for at, to in seen])
    return table[:, :2], table[:, 2:]


def _controlled(controllers: Any, count: int) -> tuple[int, ...]:
    return tuple(controllers[i].controlled_player for i in range(count))
