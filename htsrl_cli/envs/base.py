"""The interface of an environment.

Executors import this module, so it imports little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy.typing as npt

Array = npt.NDArray[Any]

# Height and width of the smallest images for convolutional networks such as `nature_cnn`, whose
# third convolution would have no output for smaller ones.
LARGE_IMAGE = 36


@dataclass(frozen=True)
class ActionSpec:
    """The form of one column's action, which is a vector of `num_dims` numbers.

    Attributes:
        kind: `categorical` (one integer for each entry of `sizes`; with several entries, the action
            is multi-categorical) or `gaussian` (one float for each entry of `low`). The actions of
            a policy may also be `squashed`: `gaussian` and then brought into the bounds by tanh.
        sizes: the number of categories in each dimension; empty for floats.
        low, high: the bounds to which an action is clipped; empty for `categorical`.
    """

    kind: str
    sizes: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def num_dims(self) -> int:
        """D, the length of an action vector."""
        return len(self.sizes) or len(self.low)

    @property
    def num_choices(self) -> int:
        """M, the number of categories in all dimensions; 0 for floats."""
        return sum(self.sizes)

    @property
    def dtype(self) -> str:
        """NumPy's name of the dtype of an action vector."""
        return "int64" if self.kind == "categorical" else "float32"


@dataclass(frozen=True)
class EnvSpec:
    """The form of each player's observations and actions, and the number of players.

    Attributes:
        obs_shape: shape of an observation; [H, W, channels] for images.
        obs_dtype: NumPy's name of the dtype of an observation; `uint8` for images.
        actions: the form of an action.
        obs_max: largest possible value of a uint8 observation, by which networks divide; has no
            meaning for other dtypes.
        num_players: P, the number of players, who act at the same time; each player is a column of
            the slot.
        has_masks: True if the environment is a `MaskedEnv`; its actions are then categorical.
        normalize_obs: True if policies normalize observations by running statistics; the dtype is
            then float32.
        normalize_reward: True if the learner divides rewards by the standard deviation of their
            discounted sums.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: str
    actions: ActionSpec
    num_players: int = 1
    obs_max: int = 255
    has_masks: bool = False
    normalize_obs: bool = False
    normalize_reward: bool = False

    @property
    def obs_scale(self) -> float:
        """Factor by which a network multiplies an observation before its first layer."""
        return 1 / self.obs_max if self.obs_dtype == "uint8" else 1.0


def is_large_image(obs_shape: tuple[int, ...]) -> bool:
    """Returns True if `obs_shape` is [H, W, C], and H and W are at least `LARGE_IMAGE`."""
    return len(obs_shape) == 3 and min(obs_shape[:2]) >= LARGE_IMAGE


class Env(Protocol):
    """An environment with Gymnasium's `reset` and `step`, whose state can be saved and restored.

    `step` takes an action vector (`ActionSpec`) and returns Gymnasium's five values. The reward is
    the training reward, which may be clipped. After `terminated` or `truncated`, the caller resets
    the environment. On the env step that ends a whole game, `info["episode"]` is
    `{"r": raw score, "l": length in env steps}`.

    If `env_spec.num_players` (P) is more than 1, observations, actions and rewards have a leading
    axis of length P. An episode begins and ends for all players at once.

    Attributes:
        env_spec: the form of observations and actions.
    """

    env_spec: EnvSpec

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins an episode; `seed` determines its random events.

        Returns:
            The first observation, and `info`.
        """

    def step(self, action: Array) -> tuple[Array, float | Array, bool, bool, dict[str, Any]]:
        """Takes one env step.

        Args:
            action: [D], or [P, D] for several players.

        Returns:
            Observation, reward (a float, or float32 [P]), terminated, truncated, info.
        """

    def get_state(self) -> bytes:
        """Returns the complete state, including that of wrappers and random generators."""

    def set_state(self, state: bytes) -> Array:
        """Restores a state that `get_state` returned in any process; returns the observation.

        The bytes are only read as data, never executed.

        Raises:
            CheckpointError: the bytes are damaged or belong to another environment.
        """

    def close(self) -> None:
        """Releases resources other than memory."""


class MaskedEnv(Env, Protocol):
    """An `Env` that says which actions are allowed; its `env_spec.has_masks` is True.

    Attributes:
        action_mask: bool [M], or [P, M] for several players; True for each allowed category of each
            dimension, in order. It belongs to the last observation that `reset`, `step` or
            `set_state` returned, unless this observation ended an episode. Each dimension has an
            allowed category.
    """

    action_mask: Array


def action_mask(env: Env) -> Array:
    """Returns the current action mask of a `MaskedEnv`."""
    return cast(MaskedEnv, env).action_mask


@runtime_checkable
class Replayable(Protocol):
    """An `Env` whose `set_state` replays the env steps of an episode, which may take long.

    Attributes:
        on_replayed_step: function that `set_state` calls after each replayed env step. It shows the
            watcher of the workers that the replay makes progress.
        begins_again: True if the last call of `set_state` could not replay the episode, and began
            it again instead.
    """

    on_replayed_step: Callable[[], object]
    begins_again: bool


@runtime_checkable
class WrapperEnv(Protocol):
    """An `Env` that wraps a Gymnasium environment and converts its observations and actions.

    The conversions keep no state, and work after `close`.
    """

    @property
    def wrapped(self) -> Any:
        """The `gymnasium.Env`."""

    def to_obs(self, raw: Any) -> Array:
        """Converts an observation of `wrapped`.

        Raises:
            ValueError: the observation does not fit the observation space.
        """

    def to_action(self, action: Array) -> Any:
        """Converts an action vector [D] into an action that `wrapped.step` takes."""

    def unbatch(self, raw: Any) -> list[Any] | None:
        """Returns the observations of a batch; None if `raw` is one observation of `wrapped`.

        Raises:
            ValueError: `raw` is neither.
        """

    def batch(self, actions: Sequence[Any]) -> Any:
        """Returns the batch of one or more actions for `wrapped`."""


class MaskedWrapperEnv(WrapperEnv, MaskedEnv, Protocol):
    """A `WrapperEnv` whose environment gives action masks."""

    def to_mask(self, raw: Any, given: Any) -> Array:
        """Converts the action mask for an observation; see `MaskedEnv`.

        Args:
            raw: an observation of `wrapped`, which may contain the mask.
            given: the mask that came with the observation; None if there is none.

        Raises:
            ValueError: the mask is missing or invalid, or there are two.
        """


@runtime_checkable
class PicturedEnv(Env, Protocol):
    """An environment that can be rendered: the result of `make_env` with a `renderer`.

    Attributes:
        frame_rate: env steps per second at the environment's normal speed.
    """

    frame_rate: float

    @property
    def score(self) -> float:
        """Raw score of the game so far."""

    def render(self) -> Array:
        """Returns a picture of the current state, uint8 [H, W, 3], RGB, of constant size.

        Raises:
            ConfigError: the environment cannot be rendered, or a package is missing.
        """
