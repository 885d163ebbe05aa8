"""The interface of an environment. Executors import this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ActionSpec:
    """The action of one column: a vector of `num_dims` numbers.

    Attributes:
        kind: `categorical` (one integer for each entry of `sizes`; several entries are a
            multi-categorical) or `gaussian` (one float for each entry of `low`).
        sizes: number of categories in each dimension; empty for `gaussian`.
        low, high: bounds to which an environment clips a Gaussian action; empty otherwise.
    """

    kind: str
    sizes: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def num_dims(self) -> int:
        """Numbers in an action vector (D)."""
        return len(self.sizes) or len(self.low)

    @property
    def dtype(self) -> str:
        """The dtype of an action vector, as NumPy names it."""
        return "float32" if self.kind == "gaussian" else "int64"


@dataclass(frozen=True)
class EnvSpec:
    """The observations and actions of a player; images are uint8 [H, W, channels].

    Attributes:
        num_players: decision-makers that act at the same time (P), each a column of the slot.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: str
    actions: ActionSpec
    num_players: int = 1


class Env(Protocol):
    """A Gymnasium environment whose state can be saved and restored exactly.

    `step` takes an action vector (`ActionSpec`) and returns Gymnasium's five values. The reward
    is the one to train on. After `terminated` or `truncated` the caller resets. On the step that
    ends a whole game, `info["episode"]` is `{"r": raw score, "l": length in env steps}`.

    Where `env_spec.num_players` (P) is more than 1, observations, actions and rewards have a
    leading axis of P; an episode begins and ends for all players at once.
    """

    env_spec: EnvSpec

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins an episode, whose random events `seed` decides."""

    def step(self, action: Array) -> tuple[Array, float | Array, bool, bool, dict[str, Any]]:
        """Takes one env step; an action is a vector of `env_spec.actions.num_dims` numbers."""

    def get_state(self) -> bytes:
        """Packs everything that decides the future, wrappers and generators included."""

    def set_state(self, state: bytes) -> Array:
        """Restores `get_state`'s bytes, executing none of them; returns the observation."""

    def close(self) -> None:
        """Releases what the environment holds outside memory."""


@runtime_checkable
class PicturedEnv(Env, Protocol):
    """An environment whose state can be pictured: what `make_env` builds with a `renderer`.

    Attributes:
        frame_rate: env steps in a second of play.
    """

    frame_rate: float

    @property
    def score(self) -> float:
        """Raw score of the game so far."""

    def render(self) -> Array:
        """Returns a picture of the present state, uint8 [H, W, 3], RGB; of constant size.

        Raises:
            ConfigError: it turns out that there is no such picture, or that a package is missing.
        """
