"""States that a Gymnasium environment saves itself, so that no actions need to be replayed.

A snapshot holds the state of the environment that the entry point built, the state of its random
generator, and the env steps that the time limits of `gymnasium.make` have counted.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import version
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from htsrl_cli.envs.gym.values import decode, encode
from htsrl_cli.errors import CheckpointError


class OwnState(Protocol):
    """The way in which a kind of environments saves and restores its own state.

    Attributes:
        method: name of this way in saved states.
    """

    method: str

    def get(self) -> Any:
        """Returns the state, as a value that `encode` accepts."""

    def set(self, value: Any) -> None:
        """Restores a state that `get` returned for another instance of the environment."""


class Snapshots:
    """Snapshots of one environment, which may offer its own state.

    The methods `get_state()` and `set_state(state)` of the environment that the entry point built
    offer its state. If it has wrappers, the outermost wrapper must have these methods, because
    wrappers have state, too. The states of Gymnasium's MuJoCo environments and of MinAtar's games
    are known without such methods.

    Args:
        env: the environment that `gymnasium.make` returned.

    Attributes:
        method: the way in which the environment's state is saved; None if the environment does not
            offer its state, so that there are no snapshots.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._limits: list[TimeLimit[Any, Any]] = []
        built = env
        while type(built) in (TimeLimit, OrderEnforcing):
            if isinstance(built, TimeLimit):
                self._limits.append(built)
            built = built.env  # type: ignore[attr-defined]
        self._unwrapped = built.unwrapped
        self._own = _own_state(built)
        self.method = self._own.method if self._own else None

    def take(self) -> tuple[dict[str, Any], list[bytes]]:
        """Returns a snapshot: a JSON-serializable value, and blobs.

        Raises:
            TypeError: the environment's state contains an unsupported value.
            Exception: the environment's own code raises it.
        """
        assert self._own, "the environment does not offer its state"
        blobs: list[bytes] = []
        snapshot = {
            "method": self.method,
            "own": encode(self._own.get(), blobs),
            "generator": encode(self._unwrapped.np_random.bit_generator.state, blobs),
            "limits": [limit._elapsed_steps for limit in self._limits],
        }
        return snapshot, blobs

    def restore(self, snapshot: dict[str, Any], blobs: list[bytes]) -> None:
        """Restores a snapshot that `take` returned for another instance of the environment.

        Reset the environment first.

        Raises:
            CheckpointError: the snapshot is damaged, or was saved in another way.
            Exception: the environment's own code raises it.
        """
        if self._own is None or snapshot["method"] != self.method:
            raise CheckpointError(
                f"the environment's state was saved by {snapshot['method']}, but the installed "
                f"environment has {self.method or 'no such method'}: use the version of the "
                "environment with which the run was trained"
            )
        try:
            own = decode(snapshot["own"], blobs)
            generator = decode(snapshot["generator"], blobs)
            limits = list(zip(self._limits, snapshot["limits"], strict=True))
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the gym state is damaged: {error}") from error
        self._own.set(own)
        self._unwrapped.np_random.bit_generator.state = generator
        for limit, elapsed_steps in limits:
            limit._elapsed_steps = elapsed_steps


def _own_state(built: Any) -> OwnState | None:
    if _has_methods(built):
        return _Methods(built)
    if type(built).__module__.startswith("gymnasium.envs.mujoco."):
        return _Mujoco(built)
    if type(built).__module__ == "minatar.gym":
        return _MinAtar(built)
    return None


def _has_methods(env: Any) -> bool:
    """Returns True if `get_state()` and `set_state(state)` can be called with these arguments.

    `set_state` of MuJoCo environments has two arguments.
    """
    try:
        inspect.signature(env.get_state).bind()
        inspect.signature(env.set_state).bind(None)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


class _Methods:
    """State of an environment with the methods `get_state` and `set_state`."""

    method = "get_state"

    def __init__(self, env: Any) -> None:
        self._env = env

    def get(self) -> Any:
        return self._env.get_state()

    def set(self, value: Any) -> None:
        self._env.set_state(value)


class _Mujoco:
    """State of the engine of one of Gymnasium's MuJoCo environments.

    The integration state determines all later states. Some environments also read quantities of the
    last env step, such as positions of bodies, which the engine does not compute again from the
    integration state. These are saved as well.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._engine: Any = importlib.import_module("mujoco")
        self.method = f"MuJoCo {version('mujoco')}"

    def get(self) -> Any:
        kind = self._engine.mjtState.mjSTATE_INTEGRATION
        integration = np.empty(self._engine.mj_stateSize(self._env.model, kind))
        self._engine.mj_getState(self._env.model, self._env.data, integration, kind)
        return integration, self._arrays()

    def set(self, value: Any) -> None:
        integration, arrays = value
        model, data = self._env.model, self._env.data
        self._engine.mj_setState(
            model, data, integration, self._engine.mjtState.mjSTATE_INTEGRATION
        )
        # Finds the contacts, on whose number the lengths of some arrays depend.
        self._engine.mj_forward(model, data)
        for name, target in self._arrays().items():
            if target.shape == arrays[name].shape:
                target[...] = arrays[name]

    def _arrays(self) -> dict[str, Any]:
        data = self._env.data
        named = ((name, getattr(data, name)) for name in dir(data) if not name.startswith("_"))
        return {name: array for name, array in named if isinstance(array, np.ndarray)}


class _MinAtar:
    """State of one of MinAtar's games, including its generator and its last action.

    Actions are sticky, and a reset does not clear the last action. The first env step of an episode
    may therefore repeat the last action of the episode before, which a replay does not know.
    """

    def __init__(self, env: Any) -> None:
        self._game = env.game
        self.method = f"MinAtar {version('minatar')}"

    def get(self) -> Any:
        own = {name: value for name, value in vars(self._game.env).items() if name != "random"}
        return own, self._game.random.get_state(legacy=False), self._game.last_action

    def set(self, value: Any) -> None:
        own, generator, last_action = value
        vars(self._game.env).update(own)
        # A reset with a seed made the game and its wrapper share this generator.
        self._game.random.set_state(generator)
        self._game.last_action = last_action
