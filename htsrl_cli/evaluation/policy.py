"""A trained policy that acts on the observations of an environment outside htsrl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.store import open_checkpoint
from htsrl_cli.envs.base import Array, Env, EnvSpec, MaskedWrapperEnv, WrapperEnv
from htsrl_cli.envs.batches import is_batch
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import UsageError
from htsrl_cli.evaluation.passes import Passes, refuse_named_code, stored_config
from htsrl_cli.networks.device import torch_set_up
from htsrl_cli.seeding import Purpose, draw_noise, generator


class Policy:
    """The trained policy of a checkpoint.

    If the run has several players, the policy acts for all of them. Independent players each have
    their own network. A policy with a memory (`network.memory`) remembers what it saw in earlier
    calls of `act`: call `reset` whenever an episode begins.

    Args:
        source: a run folder, or a checkpoint file; of a run folder, the newest intact checkpoint is
            used.
        seed: seed of the sampled actions.
        trusted: see `htsrl_cli.api.load_policy`.

    Attributes:
        checkpoint: path of the checkpoint.
        env_steps: env steps for which the policy was trained.

    Raises:
        CheckpointError: there is no intact checkpoint, or it does not fit the environment or this
            version of htsrl.
        ConfigError: the environment, the network or the device is not available here, or the
            checkpoint names a module and `trusted` is False.
        EnvError: the environment's own code raises an exception while the environment is built.
    """

    def __init__(self, source: Path, seed: int, trusted: bool) -> None:
        self.checkpoint, whole = open_checkpoint(source)
        self.env_steps: int = whole.meta["env_steps"]
        self._config = stored_config(whole, self.checkpoint)
        if not trusted:
            refuse_named_code(self._config, self.checkpoint, "False", "trusted=True")
        # Saved states of environments, slots and the optimizer need not stay in memory.
        own = {name: a for name, a in whole.arrays.items() if name.startswith("learner/params/")}
        self._stored = Checkpoint(own, whole.meta)
        with closing(make_env(self._config.env, 0)) as env:
            self._form = _Form.of(env)
        # The noise of game 0 of `htsrl eval` with the same seed.
        self._rng = generator(seed, Purpose.EVALUATION_ACTIONS, 0)
        self._passes: dict[bool, Passes] = {}
        # Memory states before the next observations, [N, P, S]; None before the first ones.
        self._memories: Array | None = None
        # A checkpoint that does not fit is refused here.
        self._load_passes(greedy=True)

    def act(self, obs: Any, greedy: bool = False, action_mask: Any = None) -> Any:
        """Returns the action for an observation, or the actions for a batch of observations.

        Observations and actions are those of the environment that `make_env` returns. For `env=gym`
        this is the Gymnasium environment itself: the policy converts its observations as in
        training, and returns actions that its `step` takes. Sampled actions depend on the `seed`
        and on the number of actions sampled before. The settings of torch are changed during the
        call only.

        Args:
            obs: one observation, or a batch of them with a leading axis; the shape tells which.
            greedy: True to take the most likely action instead of a sampled action.
            action_mask: the action mask that came with the observation, such as
                `info["action_mask"]`, or one for each observation of the batch. Only for runs with
                masks, and not if the mask is part of the observation.

        Returns:
            The action, or an array with one action for each observation of the batch. Batches for
            Gymnasium's `Dict` and `Tuple` spaces have an array for each of their parts.

        Raises:
            UsageError: the observation or the mask does not fit the environment, or the policy
                remembers another number of observations.
        """
        form = self._form
        try:
            batch = form.unbatch(obs)
            raw = [obs] if batch is None else batch
            rows = np.stack([form.to_obs(one) for one in raw])
            masks = form.masks(raw, action_mask, batch is None)
        except ValueError as error:
            raise UsageError(f"act: {error}") from error
        spec, passes = form.spec, self._load_passes(greedy)
        memories = self._remembered(len(rows), passes)
        shape = (len(rows), spec.num_players, spec.actions.num_dims)
        if greedy:
            noise = np.zeros(shape, np.float32)
        else:
            noise = draw_noise(self._rng, shape, spec.actions.kind)
        with torch_set_up():
            chosen = passes.act(rows, noise, memories, masks)
        actions = [form.to_action(one if spec.num_players > 1 else one[0]) for one in chosen]
        return actions[0] if batch is None else form.batch(actions)

    def reset(self, rows: Any = None) -> None:
        """Forgets the episodes that have ended; has an effect only on policies with a memory.

        Args:
            rows: the rows of the batch whose next observation begins an episode: indices, or a bool
                for each row, such as `terminated | truncated`. None means all rows; the next batch
                may then have another size.

        Raises:
            UsageError: the batch has no such rows.
        """
        if rows is None or self._memories is None:
            self._memories = None
            return
        try:
            self._memories[np.asarray(rows)] = 0.0
        except IndexError as error:
            raise UsageError(f"reset: {error}") from error

    def make_env(self) -> Any:
        """Returns a new environment with the run's settings, whose observations `act` takes.

        For `env=gym`, this is a `gymnasium.Env`. For other kinds, it is an environment of htsrl,
        with Gymnasium's `reset(seed=...)` and `step`. It makes the observations of the run, such as
        the stacked frames of Atari, and its rewards are those of training, which may be clipped.
        """
        env = make_env(self._config.env, 0)
        return env.wrapped if isinstance(env, WrapperEnv) else env

    def _remembered(self, num_rows: int, passes: Passes) -> Array:
        """Returns the memory states before the next observations, which `Passes.act` replaces."""
        if self._memories is None or not self._memories.size:
            self._memories = passes.first_memories(num_rows)
        if len(self._memories) != num_rows:
            raise UsageError(
                f"act: there are {num_rows} observations, but the policy remembers "
                f"{len(self._memories)} episodes; call policy.reset() before other episodes"
            )
        return self._memories

    def _load_passes(self, greedy: bool) -> Passes:
        if greedy not in self._passes:
            with torch_set_up():
                self._passes[greedy] = Passes(
                    self._stored, self._config, self._form.spec, self.checkpoint, greedy
                )
        return self._passes[greedy]


@dataclass(frozen=True)
class _Form:
    """The observations and actions of an environment as its user sees them.

    Attributes:
        spec: the form of htsrl's observations and actions.
        unbatch: returns the raw observations of a batch; None for one raw observation, of all
            players; raises `ValueError` for anything else.
        to_obs: converts a raw observation; raises `ValueError` if it does not fit.
        to_action: converts an action [D], or [P, D] for several players.
        batch: makes a batch of converted actions.
        to_mask: converts the mask for a raw observation, given the observation and the mask that
            came with it; raises `ValueError` if it does not fit.
    """

    spec: EnvSpec
    unbatch: Callable[[Any], Sequence[Any] | None]
    to_obs: Callable[[Any], Array]
    to_action: Callable[[Array], Any]
    batch: Callable[[Sequence[Any]], Any]
    to_mask: Callable[[Any, Any], Array]

    @classmethod
    def of(cls, env: Env) -> _Form:
        spec = env.env_spec
        if isinstance(env, WrapperEnv):
            to_mask = cast(MaskedWrapperEnv, env).to_mask if spec.has_masks else _own_mask(spec)
            return cls(spec, env.unbatch, env.to_obs, env.to_action, env.batch, to_mask)
        players = (spec.num_players,) if spec.num_players > 1 else ()
        one = players + spec.obs_shape
        return cls(
            spec,
            lambda obs: obs if is_batch("observation", np.shape(obs), one) else None,
            lambda obs: _checked(obs, spec),
            lambda action: action,
            np.stack,
            _own_mask(spec),
        )

    def masks(self, raw: Sequence[Any], given: Any, is_alone: bool) -> Array | None:
        """Returns the masks of raw observations, bool [N, ...]; None if the run has no masks.

        Args:
            given: the mask of a single observation, or one for each; None if none was given.
            is_alone: True if `raw` holds a single observation.

        Raises:
            ValueError: the masks do not fit.
        """
        if not self.spec.has_masks:
            if given is not None:
                raise ValueError("action_mask is given, but the policy was trained without masks")
            return None
        each = [given] * len(raw) if is_alone or given is None else list(given)
        if len(each) != len(raw):
            raise ValueError(f"there are {len(raw)} observations, but {len(each)} action masks")
        return np.stack([self.to_mask(one, its) for one, its in zip(raw, each, strict=True)])


def _own_mask(spec: EnvSpec) -> Callable[[Any, Any], Array]:
    """Returns the function that checks a mask from one of htsrl's environments."""
    players = (spec.num_players,) if spec.num_players > 1 else ()
    shape = (*players, spec.actions.num_choices)

    def check(_: Any, given: Any) -> Array:
        mask = np.asarray(given)
        if mask.shape != shape or mask.dtype != np.bool_:
            raise ValueError(f"action_mask must be a bool array of the shape {shape}")
        return mask

    return check


def _checked(obs: Any, spec: EnvSpec) -> Array:
    """Returns an observation of one of htsrl's environments in the run's dtype."""
    array = np.asarray(obs)
    if not np.can_cast(array.dtype, spec.obs_dtype, "same_kind"):
        raise ValueError(f"the observation must be {spec.obs_dtype}, but is {array.dtype}")
    return array.astype(spec.obs_dtype)
