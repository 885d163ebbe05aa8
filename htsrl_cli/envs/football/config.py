"""The keys of `env=football/<scenario>`: Google Research Football."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.rules import INDEX, Rules, count_to, one_of
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind

SCENARIOS = (
    "academy_empty_goal_close",
    "academy_empty_goal",
    "academy_run_to_score",
    "academy_run_to_score_with_keeper",
    "academy_pass_and_shoot_with_keeper",
    "academy_run_pass_and_shoot_with_keeper",
    "academy_3_vs_1_with_keeper",
    "academy_corner",
    "academy_counterattack_easy",
    "academy_counterattack_hard",
    "academy_single_goal_versus_lazy",
    "1_vs_1_easy",
    "5_vs_5",
    "11_vs_11_competition",
    "11_vs_11_kaggle",
    "11_vs_11_easy_stochastic",
    "11_vs_11_stochastic",
    "11_vs_11_hard_stochastic",
)


@dataclass(frozen=True)
class FootballConfig(EnvConfig):
    """A scenario of Google Research Football (Kurach et al., 2020).

    Attributes:
        scenario: name of a scenario of the package gfootball.
        representation: what players observe: `extracted` (the super minimap, [72, 96, 4]),
            `simple115v2` (a vector of 115 numbers), `pixels_gray` or `pixels` (the engine's
            picture, [72, 96, 1] or [72, 96, 3]).
        frame_stack: number of latest frames in an observation, joined along the last axis.
        rewards: `scoring` (+1 for a goal, -1 for a goal conceded), or `scoring,checkpoints` (in
            addition, +0.1 for each of ten distances to the opponents' goal, when the player first
            has the ball at this distance or closer; a goal also pays for the distances not yet
            reached).
        num_left_players: number of controlled players on the left side; each controlled player is a
            column.
        num_right_players: number of controlled players on the right side; each controlled player is
            a column. These players see the pitch rotated, as if they played from left to right.
    """

    rules: ClassVar[Rules] = {
        "scenario": one_of(*SCENARIOS),
        "representation": one_of("extracted", "simple115v2", "pixels_gray", "pixels"),
        "frame_stack": count_to(100),
        "rewards": one_of("scoring", "scoring,checkpoints"),
        "num_left_players": INDEX,
        "num_right_players": INDEX,
        **EnvConfig.rules,
    }
    label_key: ClassVar[str] = "scenario"
    restores_exactly: ClassVar[bool] = True
    install_hint: ClassVar[str] = (
        "run `make football` in a checkout of htsrl to build the package from source "
        "(see docs/guides/football.md)"
    )
    # `pitch` is a drawing of the pitch from above; `engine` is the engine's own picture.
    renderers: ClassVar[tuple[str, ...]] = ("pitch", "engine")
    state_package: ClassVar[str | None] = "gfootball"

    scenario: str
    representation: str
    frame_stack: int
    rewards: str
    num_left_players: int
    num_right_players: int

    @property
    def num_columns(self) -> int:
        """The number of columns: the controlled players of both sides."""
        return self.num_left_players + self.num_right_players

    @property
    def is_rendered(self) -> bool:
        """True if observations are rendered; a process can hold only one such environment."""
        return self.representation.startswith("pixels")

    @property
    def one_per_process(self) -> str:
        """The reason why a process can hold only one environment; empty if it can hold several.

        Only one engine per process can render.
        """
        if not self.is_rendered:
            return ""
        return (
            f"with env.representation={self.representation}: a process can render only one "
            "environment"
        )

    def is_alone(self, renderer: str | None) -> bool:
        """Returns True if the engine renders; only one engine per process can render."""
        return self.is_rendered or renderer == "engine"

    def check(self) -> None:
        """Checks the keys that depend on each other.

        At least one player must be controlled. If observations are rendered, no player on the
        right may be controlled.

        Raises:
            ConfigError: the keys do not fit together; the first key that must change is reported.
        """
        if self.num_columns == 0:
            raise ConfigError("env.num_left_players", 0, "no player is controlled: give 1 or more")
        if self.is_rendered and self.num_right_players:
            raise ConfigError(
                "env.num_right_players",
                self.num_right_players,
                f"must be 0 with env.representation={self.representation}: only the left side's "
                "view is rendered",
            )


KIND = Kind(FootballConfig, "htsrl_cli.envs.football.environment:make_football_env")
