"""The environments and the only registry of them.

Executors import this module: numpy, gymnasium and the environment's own package, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from htsrl_cli.config.sections import AtariConfig, EnvConfig, FootballConfig, GymConfig
from htsrl_cli.errors import ConfigError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ActionSpec:
    """What a policy emits for one column: a vector of `num_dims` numbers.

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
        """Of an action vector, as NumPy names it."""
        return "float32" if self.kind == "gaussian" else "int64"


@dataclass(frozen=True)
class EnvSpec:
    """What a player of an environment sees and does; images are uint8 [H, W, channels].

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
        """Everything that decides the environment's future, wrappers and generators included."""

    def set_state(self, state: bytes) -> Array:
        """Restores `get_state`'s bytes, executing none of them; returns the observation."""

    def close(self) -> None:
        """Releases what the environment holds outside memory."""


@runtime_checkable
class PicturedEnv(Env, Protocol):
    """An environment whose state can be pictured; built by `make_env` with a `renderer`.

    Attributes:
        frame_rate: env steps in a second of play.
    """

    frame_rate: float

    @property
    def score(self) -> float:
        """Raw score of the game so far."""

    def render(self) -> Array:
        """A picture of the present state, uint8 [H, W, 3], RGB; of constant size. Changes nothing.

        Raises:
            ConfigError: it turns out that there is no such picture, or that a package is missing.
        """


def make_env(config: EnvConfig, index: int, renderer: str | None = None) -> Env:
    """Builds environment number `index` of a run.

    Args:
        renderer: one of `config.renderers`; makes it a `PicturedEnv`. None where `render` is not
            called.

    Raises:
        ConfigError: the environment does not exist, has spaces that are not supported, cannot be
            pictured, or its package is missing.
    """
    if isinstance(config, AtariConfig):
        return _make_atari(config, renderer)
    if isinstance(config, GymConfig):
        from htsrl_cli.envs.gym.environment import make_gym_env

        return make_gym_env(config, pictured=renderer is not None)
    if isinstance(config, FootballConfig):
        return _make_football(config, renderer)
    from htsrl_cli.envs.synthetic.environment import make_synthetic_env

    return make_synthetic_env(config, index)


def usual_renderer(config: EnvConfig) -> str | None:
    """How an environment is pictured where nobody asks for something else; None: it cannot be."""
    return next(iter(config.renderers), None)


def _make_atari(config: AtariConfig, renderer: str | None) -> Env:
    try:
        from htsrl_cli.envs.atari.environment import AtariEnv
    except ModuleNotFoundError as error:
        remedy = f"needs the package {error.name}: pip install ale-py opencv-python-headless"
        raise ConfigError("env.game", config.game, remedy) from error
    return AtariEnv(config, pictured=renderer is not None)


def _make_football(config: FootballConfig, renderer: str | None) -> Env:
    try:
        from htsrl_cli.envs.football.environment import FootballEnv
    except ModuleNotFoundError as error:
        remedy = (
            f"needs the package {error.name}, built from source: run `make football` in a checkout "
            "of htsrl, or see the README's part on football"
        )
        raise ConfigError("env.scenario", config.scenario, remedy) from error
    return FootballEnv(config, renderer)
