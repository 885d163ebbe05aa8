"""Environments for tests and benchmarks: they sleep, count or fail.

In shapes, P is the number of players.
"""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.state import check_fit, pack_state, unpack_state
from htsrl_cli.envs.synthetic.config import SyntheticConfig

NUM_ACTIONS = 4
EXIT_CODE = 3
# Earlier versions used the kind "synthetic". They drew random numbers at every env step, so their
# states cannot be restored here.
_STATE_KIND = "synthetic, drawn ahead"


class SyntheticEnv(ABC):
    """An environment with episodes of fixed length, in which each env step sleeps for some time.

    All random numbers of an episode are drawn when it begins, so that an env step takes little
    longer than its sleep. Observations and sleep times come from two generators, both seeded by
    `reset`, so that observations do not depend on the sleep times. The raw score is the players'
    mean return.
    """

    def __init__(self, config: SyntheticConfig, index: int, num_obs: int) -> None:
        self._config = config
        self._index = index
        actions = ActionSpec("categorical", sizes=(NUM_ACTIONS,))
        self.env_spec = EnvSpec((num_obs,), "float32", actions, config.num_players)
        self._episode = -1
        self._total_steps = 0

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins the next episode; returns its first observation and an empty `info`."""
        self._episode += 1
        self._begin(seed)
        return self._shown[0], {}

    def _begin(self, seed: int) -> None:
        """Draws the random numbers of episode `_episode`; sets its env steps and return to 0."""
        length, num_players = self._config.episode_length, self._config.num_players
        self._seed = seed
        self._length = 0
        self._return = 0.0
        self._seconds = self._draw_seconds(np.random.default_rng([seed, 1]))
        # [length + 1, P, num_obs]. `_shown` has no second axis if there is only one player.
        self._obs = self._draw_obs(
            np.random.default_rng([seed, 0]),
            (length + 1, num_players, *self.env_spec.obs_shape),
        )
        self._shown = self._obs[:, 0] if num_players == 1 else self._obs

    def step(self, action: Array) -> tuple[Array, float | Array, bool, bool, dict[str, Any]]:
        """Sleeps, then takes one env step; `action` can affect only the reward."""
        time.sleep(self._seconds[self._length])
        self._total_steps += 1
        rewards = self._rewards(action.reshape(-1))
        self._length += 1
        mean = float(rewards[0]) if len(rewards) == 1 else float(rewards.mean())
        self._return += mean
        reward = rewards if len(rewards) > 1 else mean
        obs = self._shown[self._length]
        if self._length < self._config.episode_length:
            return obs, reward, False, False, {}
        info = {"episode": {"r": self._return, "l": self._length}}
        return obs, reward, not self._config.truncate, self._config.truncate, info

    def get_state(self) -> bytes:
        """Returns the environment's counters and the seed of the current episode, as bytes."""
        meta = {
            "name": self._config.name,
            "seed": self._seed,
            "episode": self._episode,
            "length": self._length,
            "total_steps": self._total_steps,
            "return": self._return,
        }
        return pack_state(_STATE_KIND, meta)

    def set_state(self, state: bytes) -> Array:
        """Restores a state that `get_state` returned; returns the observation of this state.

        Raises:
            CheckpointError: the bytes are damaged or belong to another environment.
        """
        meta, _ = unpack_state(_STATE_KIND, state)
        check_fit("synthetic", meta, {"name": self._config.name})
        self._episode, self._total_steps = meta["episode"], meta["total_steps"]
        self._begin(meta["seed"])
        self._length, self._return = meta["length"], meta["return"]
        obs: Array = self._shown[self._length]
        return obs

    def close(self) -> None:  # noqa: B027 - nothing to release, here or in a subclass
        """Does nothing: there are no resources other than memory."""

    @abstractmethod
    def _draw_obs(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Draws all observations of episode `_episode`.

        Returns:
            float32 [episode_length + 1, P, num_obs].
        """

    @abstractmethod
    def _rewards(self, actions: Array) -> Array:
        """Returns the rewards, float32 [P], for `actions` [P] taken at env step `_length`."""

    def _draw_seconds(self, rng: np.random.Generator) -> list[float]:
        """Draws the sleep time of each env step of an episode, in seconds."""
        config, length = self._config, self._config.episode_length
        if config.distribution == "exponential":
            times_ms = rng.exponential(config.mean_ms, length)
        elif config.distribution == "gamma":
            times_ms = rng.gamma(config.shape, config.mean_ms / config.shape, length)
        else:
            times_ms = np.full(length, config.mean_ms)
        seconds: list[float] = (times_ms / 1000).tolist()
        return seconds


class SleepEnv(SyntheticEnv):
    """An environment whose observation is a vector of four uniform random numbers.

    The reward is 1 if the action is the index of the largest number, otherwise 0.
    """

    def __init__(self, config: SyntheticConfig, index: int) -> None:
        super().__init__(config, index, NUM_ACTIONS)

    def _begin(self, seed: int) -> None:
        super()._begin(seed)
        self._largest = self._obs.argmax(axis=2)

    def _draw_obs(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.random(shape, dtype=np.float32)

    def _rewards(self, actions: Array) -> Array:
        return np.asarray(actions == self._largest[self._length], np.float32)


class CountEnv(SyntheticEnv):
    """An environment whose observation is (column, episode, env step), each counted from 0.

    The reward of the env step that leads to observation (c, k, t) is 10,000 c + 100 k + t. The
    reward is exact in float32 below 2**24. It determines the observation while k and t are at most
    99.
    """

    def __init__(self, config: SyntheticConfig, index: int) -> None:
        super().__init__(config, index, 3)

    def _draw_obs(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        num_rows, num_players, _ = shape
        obs = np.empty(shape, np.float32)
        obs[..., 0] = self._index * num_players + np.arange(num_players)
        obs[..., 1] = self._episode
        obs[..., 2] = np.arange(num_rows)[:, None]
        return obs

    def _rewards(self, actions: Array) -> Array:
        rewards: Array = self._obs[self._length + 1] @ np.array([10_000, 100, 1], np.float32)
        return rewards


class FaultyEnv(CountEnv):
    """A `CountEnv` that fails at a configured env step, or when it is built."""

    def __init__(self, config: SyntheticConfig, index: int) -> None:
        super().__init__(config, index)
        if config.fault_step < 0:
            self._fail_if_chosen()

    def step(self, action: Array) -> tuple[Array, float | Array, bool, bool, dict[str, Any]]:
        """Takes one env step; environment `env.fault_env` fails at env step `env.fault_step`."""
        if self._total_steps == self._config.fault_step:
            self._fail_if_chosen()
        return super().step(action)

    def _fail_if_chosen(self) -> None:
        if self._index != self._config.fault_env:
            return
        if self._config.fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._config.fault == "exit":
            os._exit(EXIT_CODE)
        while self._config.fault == "hang":
            time.sleep(1)
        raise RuntimeError(f"asked to fail at env step {self._config.fault_step} (env.fault=raise)")


_ENVS: dict[str, type[SleepEnv] | type[CountEnv]] = {
    "sleep": SleepEnv,
    "count": CountEnv,
    "faulty": FaultyEnv,
}


def make_synthetic_env(config: SyntheticConfig, index: int, renderer: str | None) -> SyntheticEnv:
    """Builds environment number `index`, of type `config.name`; ignores `renderer`."""
    return _ENVS[config.name](config, index)
