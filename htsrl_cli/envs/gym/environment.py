"""An adapter for Gymnasium environments."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import error, spaces

from htsrl_cli.envs.base import Array, EnvSpec
from htsrl_cli.envs.failure import FAILURES, failure
from htsrl_cli.envs.gym import parts, results
from htsrl_cli.envs.gym.actions import action_form
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.envs.gym.making import make
from htsrl_cli.envs.gym.masks import KEY, MaskForm, is_in
from htsrl_cli.envs.gym.observations import obs_form
from htsrl_cli.envs.gym.saving import Snapshots
from htsrl_cli.envs.probe import restoring_fault
from htsrl_cli.envs.state import check_fit, pack_state, unpack_state
from htsrl_cli.errors import ConfigError, HtsrlError

logger = logging.getLogger(__name__)

# Frames per second of videos of environments that do not declare `render_fps`.
_FRAME_RATE = 30


class GymEnv:
    """An `Env` that wraps a Gymnasium environment.

    A saved state is a replay: the seed of the last reset and all actions since then. If the
    environment offers its own state, and if a test shows that this state is restored exactly, the
    saved state is a snapshot instead.

    `htsrl_cli.envs.gym.observations`, `actions` and `masks` convert what it gives and takes.

    Args:
        config: the section `env`.
        index: index of the environment in the run, for error messages.
        pictured: True if `render` will be called.
        snaps: True if saved states are snapshots, False if they are replays; None to decide it by a
            test when the first state is saved.

    Attributes:
        frame_rate: env steps per second at the environment's normal speed.
        notes: what happens to the numbers in observations and actions, a sentence for each.
        to_obs, to_action, unbatch, batch: see `WrapperEnv`.
        action_mask: see `MaskedEnv`; only with `env.mask_actions`.
        to_mask: see `MaskedWrapperEnv`; only with `env.mask_actions`.
        on_replayed_step, begins_again: see `Replayable`.
        score: the raw score of the episode so far.

    Raises:
        ConfigError: the environment does not exist, needs a missing package, has unsupported
            spaces, cannot be rendered, or has masks for actions that are not discrete.
    """

    action_mask: Array

    def __init__(
        self,
        config: GymConfig,
        index: int = 0,
        pictured: bool = False,
        snaps: bool | None = None,
    ) -> None:
        self._config = config
        self._id = config.id
        self._name = f"environment {max(index, 0)} (env.id={config.id})"
        self._env = _make_pictured(config) if pictured else make(config)
        self.frame_rate = float(self._env.metadata.get("render_fps") or _FRAME_RATE)
        action = action_form(config, self._env.action_space)
        space = _seen(config, self._env.observation_space)
        self._masks = MaskForm(config, space, action.spec) if config.mask_actions else None
        unseen = [*config.ignore_observations]
        if self._masks:
            self.to_mask = self._masks.convert
            unseen += [KEY] * self._masks.in_obs
        obs = obs_form(config, parts.without(space, unseen))
        if config.normalize_obs and obs.dtype == "uint8":
            remedy = f"the observations of env.id={config.id} are bytes, which are divided by "
            remedy += f"{obs.obs_max}: leave this key out"
            raise ConfigError("env.normalize_obs", "true", remedy)
        self.to_obs, self.to_action = obs.convert, action.convert
        if unseen:
            self.to_obs = lambda raw: obs.convert(parts.leave_out(raw, unseen))
        self.unbatch = lambda raw: parts.unbatch(
            space, parts.leave_out(raw, config.ignore_observations)
        )
        self.batch = partial(parts.batch, self._env.action_space)
        actions = action.spec
        self.env_spec = EnvSpec(
            obs.shape,
            obs.dtype,
            actions,
            obs_max=obs.obs_max,
            has_masks=config.mask_actions,
            normalize_obs=config.normalize_obs,
            normalize_reward=config.normalize_reward,
        )
        self.notes = [form.note for form in (obs, action) if form.note]
        if is_in(space) and not self._masks:
            self.notes.append(
                f"{KEY} is a part of the observation; env.mask_actions=true masks actions with it"
            )
        self._identity = {"id": config.id, "action": [actions.dtype, actions.num_dims]}
        self._snapshots = Snapshots(self._env)
        self._snaps = snaps
        self._seed: int | None = None
        self._actions = bytearray()
        self.on_replayed_step: Callable[[], object] = lambda: None
        self.begins_again = False
        self.score = 0.0
        self._length = 0

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Begins an episode, and forgets the stored actions of the previous episode.

        Raises:
            EnvError: the environment raises an exception, or returns something invalid.
        """
        self._seed = seed
        self._actions.clear()
        self.score = 0.0
        self._length = 0
        try:
            obs, info = results.of_reset(self._env.reset(seed=seed))
            self._obs = self.to_obs(obs)
            if self._masks:
                self.action_mask = self._masks.convert(obs, info.get(KEY))
        except FAILURES as cause:
            raise failure(f"{self._name}: reset(seed={seed})", cause) from cause
        return self._obs, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Takes one env step; the reward is that of the Gymnasium environment, unchanged.

        Raises:
            EnvError: the environment raises an exception, or returns something invalid.
        """
        taken = np.asarray(action, self.env_spec.actions.dtype)
        if not self._snaps:
            self._actions += taken.tobytes()
        try:
            result = self._env.step(self.to_action(taken))
            obs, reward, terminated, truncated, given = results.of_step(result)
            self._obs = self.to_obs(obs)
            ended = terminated or truncated
            if self._masks and not ended:
                self.action_mask = self._masks.convert(obs, given.get(KEY))
        except FAILURES as cause:
            where = f"{self._name}: env step {self._length} after reset(seed={self._seed})"
            raise failure(where, cause) from cause
        self.score += reward
        self._length += 1
        info = {"episode": {"r": self.score, "l": self._length}} if ended else {}
        return self._obs, reward, terminated, truncated, info

    def get_state(self) -> bytes:
        """Returns the state of the current episode; call `reset` first.

        Raises:
            EnvError: the environment's own `get_state` raises an exception, or returns something
                that cannot be saved.
        """
        assert self._seed is not None, "call reset before get_state"
        meta: dict[str, Any] = self._identity | {"seed": self._seed}
        if self._snaps is None:
            self._snaps = self._snapshots.method is not None and _snaps_exactly(self._config)
        if not self._snaps:
            return pack_state("gym", meta, [bytes(self._actions)])
        try:
            snapshot, blobs = self._snapshots.take()
        except FAILURES as cause:
            raise failure(f"{self._name}: get_state()", cause) from cause
        meta |= {"snapshot": snapshot, "score": self.score, "length": self._length}
        if self._masks:
            meta["mask"] = self.action_mask.tolist()
        return pack_state("gym", meta, [self._obs.tobytes(), *blobs])

    def set_state(self, state: bytes) -> Array:
        """Restores a state that `get_state` returned in any process; returns the observation.

        Resets the environment with the saved seed, and then restores the snapshot or takes all
        saved actions again. A replay is exact if the environment depends only on the reset seed and
        the actions. If the episode ends before all saved actions are taken, the episode begins
        again instead (`begins_again`).

        Raises:
            CheckpointError: the bytes are damaged or belong to another environment.
            EnvError: the environment raises an exception, or returns something invalid.
        """
        meta, (content, *blobs) = unpack_state("gym", state)
        check_fit("gym", meta, self._identity)
        self.begins_again = False
        obs, _ = self.reset(seed=meta["seed"])
        if "snapshot" not in meta:
            return self._replay(content, obs)
        try:
            self._snapshots.restore(meta["snapshot"], blobs)
        except HtsrlError:
            raise
        except FAILURES as cause:
            raise failure(f"{self._name}: set_state()", cause) from cause
        # The actions before the snapshot are not known, so the episode cannot be replayed.
        self._snaps = True
        self.score, self._length = meta["score"], meta["length"]
        self._obs = np.frombuffer(content, obs.dtype).reshape(obs.shape)
        if self._masks:
            self.action_mask = np.array(meta["mask"], np.bool_)
        return self._obs

    def _replay(self, actions: bytes, obs: Array) -> Array:
        """Takes all `actions` again after a reset that returned `obs`; returns the observation."""
        spec, seed, ended = self.env_spec.actions, self._seed, False
        assert seed is not None
        for action in np.frombuffer(actions, spec.dtype).reshape(-1, spec.num_dims):
            if ended:
                self.begins_again = True
                return self.reset(seed=seed)[0]
            obs, _, terminated, truncated, _ = self.step(action)
            ended = terminated or truncated
            self.on_replayed_step()
        return obs

    def render(self) -> Array:
        """Returns the picture of Gymnasium's render mode `rgb_array`, uint8 [H, W, 3].

        Raises:
            ConfigError: the environment returns something else, or a package is missing.
        """
        try:
            picture: Any = self._env.render()
        except (error.Error, ImportError) as cause:
            raise _not_pictured(self._id, str(cause)) from cause
        if not _is_image(picture):
            raise _not_pictured(self._id, "its render() does not return a uint8 array [H, W, 3]")
        image: Array = picture
        return image

    @property
    def wrapped(self) -> gymnasium.Env[Any, Any]:
        """See `WrapperEnv`."""
        return self._env

    def close(self) -> None:
        """Closes the Gymnasium environment; an exception is logged, because nothing is lost."""
        try:
            self._env.close()
        except FAILURES as cause:
            logger.warning("%s", failure(f"{self._name}: close()", cause))


def make_gym_env(config: GymConfig, index: int, renderer: str | None) -> GymEnv:
    """Builds the environment `env.id`; if it is built for its spec, logs its `notes`.

    Raises:
        ConfigError: as for `GymEnv`.
    """
    env = GymEnv(config, index, pictured=renderer is not None)
    if index < 0:
        for note in env.notes:
            logger.info("env.id=%s: %s", config.id, note)
    return env


# The answers of `_snaps_exactly` in this process.
_SNAPS: dict[str, bool] = {}


def _snaps_exactly(config: GymConfig) -> bool:
    """Returns True if a test finds that snapshots of the environment are restored exactly."""
    key = repr(config)
    if key not in _SNAPS:
        fault = restoring_fault(partial(GymEnv, config, snaps=True))
        _SNAPS[key] = not fault
        if fault:
            logger.info(
                "env.id=%s: a test could not restore the environment's own state exactly, so its "
                "actions are saved instead: %s",
                config.id,
                fault,
            )
    return _SNAPS[key]


def _make_pictured(config: GymConfig) -> gymnasium.Env[Any, Any]:
    """Builds the environment in render mode `rgb_array`, which the environment must declare."""
    env = make(config)
    modes = env.metadata.get("render_modes") or ()
    env.close()
    if "rgb_array" not in modes:
        raise _not_pictured(config.id, "it has no render mode rgb_array")
    # Without these variables, pygame prints a greeting to standard output and looks for a display.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    return make(replace(config, kwargs=config.kwargs | {"render_mode": "rgb_array"}))


def _seen(config: GymConfig, space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Returns the observation space without `env.ignore_observations`."""
    known = list(space.spaces) if isinstance(space, spaces.Dict) else []
    for key in config.ignore_observations:
        if key not in known:
            remedy = f"env.id={config.id} has no such part; its parts are: {', '.join(known)}"
            raise ConfigError(
                "env.ignore_observations",
                list(config.ignore_observations),
                remedy if known else f"the observation of env.id={config.id} is no Dict",
            )
    return parts.without(space, config.ignore_observations)


def _is_image(picture: Any) -> bool:
    return (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] == 3
    )


def _not_pictured(env_id: str, why: str) -> ConfigError:
    return ConfigError("video", "true", f"{env_id} cannot be rendered: {why}")
