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
        scale_observations: divide integers and images by the bounds of the observation space; if
            false, only uint8 arrays are divided, by 255.
        scale_actions: map -1 and 1 to the bounds of a bounded `Box` of actions; if false, actions
            are only clipped to the bounds.
        ignore_observations: keys of a `Dict` of observations that the policy does not see, for
            example because their space is not supported.
        normalize_obs: normalize observations to mean 0 and variance 1, by their running mean and
            variance, and clip them to ±10.
        normalize_reward: divide rewards by the running standard deviation of the discounted
            return, and clip them to ±10, for the learner only; scores are not changed.
        mask_actions: never choose an action that the environment's action mask does not allow; the
            mask is `info["action_mask"]`, or the part `action_mask` of a `Dict` observation.
        max_episode_steps: time limit of an episode in env steps; null keeps the limit with which
            the environment is registered.
    """

    rules: ClassVar[Rules] = {
        "id": ONE_WORD,
        "max_episode_steps": OPTIONAL_COUNT,
        **EnvConfig.rules,
    }
    label_key: ClassVar[str] = "id"
    has_tuned_settings: ClassVar[bool] = True
    renderers: ClassVar[tuple[str, ...]] = ("rgb_array",)

    id: str
    kwargs: dict[str, Any]
    scale_observations: bool
    scale_actions: bool
    ignore_observations: tuple[str, ...]
    normalize_obs: bool
    normalize_reward: bool
    mask_actions: bool
    max_episode_steps: int | None

    @property
    def normalizes_reward(self) -> bool:
        """True if running statistics normalize rewards."""
        return self.normalize_reward


KIND = Kind(GymConfig, "htsrl_cli.envs.gym.environment:make_gym_env")
