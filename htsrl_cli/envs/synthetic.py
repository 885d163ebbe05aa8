"""Environments made for tests and benchmarks: slow ones, ones that count, ones that fail."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from htsrl_cli.config import SyntheticConfig
from htsrl_cli.envs import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.state import (
    check_fit,
    generator_state,
    pack_state,
    restore_generator,
    unpack_state,
)

NUM_ACTIONS = 4
EXIT_CODE = 3


class SyntheticEnv(ABC):
    """Episodes of fixed length whose steps take a random time.

    The times and whatever else is random come from two generators, both seeded by the reset:
    what an agent sees does not depend on how long the steps take. The raw score is the return of
    the mean player.
    """

    def __init__(self, config: SyntheticConfig, index: int, num_obs: int) -> None:
        self._config = config
        self._index = index
        actions = ActionSpec("categorical", sizes=(NUM_ACTIONS,))
        self.env_spec = EnvSpec((num_obs,), "float32", actions, config.num_players)
        self._rng = np.random.default_rng(0)
        self._time_rng = np.random.default_rng(0)
        # [P, num_obs]; a single player's is shown without its axis.
        self._obs = np.zeros((config.num_players, num_obs), np.float32)
        self._episode = -1
        self._length = 0
        self._total_steps = 0
        self._return = 0.0

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins the next episode."""
        self._rng = np.random.default_rng([seed, 0])
        self._time_rng = np.random.default_rng([seed, 1])
        self._episode += 1
        self._length = 0
        self._return = 0.0
        self._obs = self._observe()
        return self._shown(), {}

    def step(self, action: Array) -> tuple[Array, float | Array, bool, bool, dict[str, Any]]:
        """Sleeps, counts, pays; `action` decides nothing but the reward."""
        time.sleep(self._draw_ms() / 1000)
        self._length += 1
        self._total_steps += 1
        rewards = self._rewards(action.reshape(-1))
        reward = rewards if len(rewards) > 1 else float(rewards[0])
        self._return += float(rewards.mean())
        self._obs = self._observe()
        if self._length < self._config.episode_length:
            return self._shown(), reward, False, False, {}
        info = {"episode": {"r": self._return, "l": self._length}}
        return self._shown(), reward, not self._config.truncate, self._config.truncate, info

    def get_state(self) -> bytes:
        """Generators, counters and the observation."""
        meta = {
            "name": self._config.name,
            "rng": generator_state(self._rng),
            "time_rng": generator_state(self._time_rng),
            "episode": self._episode,
            "length": self._length,
            "total_steps": self._total_steps,
            "return": self._return,
        }
        return pack_state("synthetic", meta, [self._obs.tobytes()])

    def set_state(self, state: bytes) -> Array:
        """Restores `get_state`'s bytes; returns the observation.

        Raises:
            CheckpointError: the bytes are damaged, or of another environment.
        """
        meta, (obs,) = unpack_state("synthetic", state)
        check_fit("synthetic", meta, {"name": self._config.name})
        restore_generator(self._rng, meta["rng"])
        restore_generator(self._time_rng, meta["time_rng"])
        self._episode, self._length = meta["episode"], meta["length"]
        self._total_steps, self._return = meta["total_steps"], meta["return"]
        self._obs = np.frombuffer(obs, np.float32).reshape(self._obs.shape)
        return self._shown()

    def close(self) -> None:  # noqa: B027 - nothing to release, here or in a subclass
        """Nothing is held outside memory."""

    @abstractmethod
    def _observe(self) -> Array:
        """Observations at `_length` steps of episode `_episode`: a new array, as `_obs`."""

    @abstractmethod
    def _rewards(self, actions: Array) -> Array:
        """Rewards [P] for `actions` [P], given after `_observe`'s last observations."""

    def _shown(self) -> Array:
        return self._obs if len(self._obs) > 1 else self._obs.reshape(-1)

    def _draw_ms(self) -> float:
        config = self._config
        if config.distribution == "exponential":
            return self._time_rng.exponential(config.mean_ms)
        if config.distribution == "gamma":
            return self._time_rng.gamma(config.shape, config.mean_ms / config.shape)
        return config.mean_ms


class SleepEnv(SyntheticEnv):
    """Takes its time. Four uniform numbers are seen; naming the largest pays 1, others 0."""

    def __init__(self, config: SyntheticConfig, index: int) -> None:
        super().__init__(config, index, NUM_ACTIONS)

    def _observe(self) -> Array:
        return self._rng.random(self._obs.shape, dtype=np.float32)

    def _rewards(self, actions: Array) -> Array:
        return np.asarray(actions == self._obs.argmax(axis=1), np.float32)


class CountEnv(SyntheticEnv):
    """Says where it is: the observation is (column, episode, step), all from 0.

    The reward of the step that leads to (c, k, t) is 10,000 c + 100 k + t: below 2**24 it is exact
    in float32, and up to 99 episodes and steps it can be read back.
    """

    def __init__(self, config: SyntheticConfig, index: int) -> None:
        super().__init__(config, index, 3)

    def _observe(self) -> Array:
        num_players = self._config.num_players
        columns = range(self._index * num_players, (self._index + 1) * num_players)
        return np.array([(c, self._episode, self._length) for c in columns], np.float32)

    def _rewards(self, actions: Array) -> Array:
        return np.array([10_000 * c + 100 * k + t for c, k, t in self._observe()], np.float32)


class FaultyEnv(CountEnv):
    """Counts until it is told to fail."""

    def __init__(self, config: SyntheticConfig, index: int) -> None:
        super().__init__(config, index)
        if config.fault_step < 0:
            self._fail_if_chosen()

    def step(self, action: Array) -> tuple[Array, float | Array, bool, bool, dict[str, Any]]:
        """Fails where `env.fault_step` says so."""
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
        raise RuntimeError(f"asked to fail at env step {self._config.fault_step}")


_ENVS: dict[str, type[SleepEnv] | type[CountEnv]] = {
    "sleep": SleepEnv,
    "count": CountEnv,
    "faulty": FaultyEnv,
}


def make_synthetic_env(config: SyntheticConfig, index: int) -> SyntheticEnv:
    """Builds environment number `index` of `env.name`, which validation has checked."""
    return _ENVS[config.name](config, index)
