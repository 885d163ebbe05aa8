"""The keys of `env=gym`: any Gymnasium environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.rules import ONE_WORD, OPTIONAL_COUNT, Rules
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class GymConfig(EnvConfig):
    """Any registered Gymnasium environment.

    Attributes:
        id: a Gymnasium id, or `module:id`: every process that builds the environment then imports
            the module first.
        kwargs: keyword arguments for `gymnasium.make`.
        max_episode_steps: time limit of an episode in env steps; null keeps the limit with which
            the environment is registered.
    """

    rules: ClassVar[Rules] = {
        "id": ONE_WORD,
        "max_episode_steps": OPTIONAL_COUNT,
        **EnvConfig.rules,
    }
    label_key: ClassVar[str] = "id"
    renderers: ClassVar[tuple[str, ...]] = ("rgb_array",)

    id: str
    kwargs: dict[str, Any]
    max_episode_steps: int | None


KIND = Kind(GymConfig, "htsrl_cli.envs.gym.environment:make_gym_env")
