"""Forward passes with the policies of a checkpoint, like those of the run's actors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.config.identity import named_modules
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import Array, EnvSpec
from htsrl_cli.envs.squash import squasher
from htsrl_cli.errors import CheckpointError, ConfigError
from htsrl_cli.sampling.inference import Inference, InferenceSetup, has_free_rows


def stored_config(checkpoint: Checkpoint, path: Path) -> TrainConfig:
    """Returns the configuration of the run that saved a checkpoint.

    Args:
        path: path of the checkpoint, for the error message.

    Raises:
        CheckpointError: this version of htsrl cannot use the configuration.
    """
    try:
        return load_train_config(checkpoint.meta["config"])
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        ConfigError,
    ) as error:
        raise CheckpointError(
            f"{path}: this version of htsrl cannot use the configuration in the checkpoint "
            f"({error}); evaluate the checkpoint with the version that saved it"
        ) from error


def refuse_named_code(config: TrainConfig, path: Path, value: str, remedy: str) -> None:
    """Raises `ConfigError` if a checkpoint names a module, which could be anyone's code.

    Args:
        config: the configuration in the checkpoint.
        path: path of the checkpoint.
        value: value of the key or argument `trusted`.
        remedy: what to write to run the code.
    """
    for source, module in named_modules(config).items():
        raise ConfigError(
            "trusted",
            value,
            f"{path} names the module {module} ({source}), whose code would run: if you trust the "
            f"checkpoint, add {remedy}",
        )


class Passes:
    """Forward passes of constant shape over the players of several games.

    If every player has its own policy, policy k acts for player k of every game. If a row's bits
    depend on its position in the batch, each game gets its own passes. Its actions would otherwise
    depend on the games beside it.

    Args:
        checkpoint: a complete checkpoint, or one with only the policies' parameters and `meta`.
        config: the configuration of the run.
        spec: the form of the environment's observations and actions.
        path: path of the checkpoint, for error messages.
        greedy: True to take the most likely actions instead of sampling.

    Raises:
        CheckpointError: the checkpoint does not fit the environment or the network.
        ConfigError: the device is not available, or the network cannot be imported.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: TrainConfig, spec: EnvSpec, path: Path, greedy: bool
    ) -> None:
        if checkpoint.meta.get("env_spec") != json.loads(json.dumps(asdict(spec))):
            raise CheckpointError(
                f"{path} does not fit the installed environment, which has {spec}; install the "
                "version of the environment's package with which the run was trained"
            )
        setup = InferenceSetup.of(spec, config)
        self._inference = Inference(setup, greedy)
        values = _parameters(checkpoint, self._inference, path)
        self._inference.load(values)
        self._spec = spec
        self._squash = squasher(spec.actions, config.algo)
        self._one_by_one = not has_free_rows(setup, values)

    def first_memories(self, num_games: int) -> Array:
        """Returns the memory states at the beginning of G episodes: zeros, float32 [G, P, S]."""
        width = self._inference.next_memories.shape[1]
        return np.zeros((num_games, self._spec.num_players, width), np.float32)

    def act(self, obs: Array, noise: Array, memories: Array, masks: Array | None = None) -> Array:
        """Returns the actions of the P players of G games, [G, P, D], for their environments.

        Args:
            obs: observations, [G, P, *obs_shape]; with one player, the axis P may be missing.
            noise: the noise from which actions are sampled, float32 [G, P, D].
            memories: memory states before the observations, float32 [G, P, S], which are replaced
                by those after them. S is 0 if the policies have no memory.
            masks: action masks, bool [G, P, M]; None if the environment gives none.
        """
        if self._one_by_one and len(obs) > 1:
            games = range(len(obs))
            inputs = (obs, noise, memories, *([] if masks is None else [masks]))
            return np.concatenate([self.act(*(of[i : i + 1] for of in inputs)) for i in games])
        inference, shape = self._inference, noise.shape
        obs = obs.reshape(-1, *self._spec.obs_shape)
        noise = noise.reshape(len(obs), -1)
        states = memories.reshape(len(obs), -1)
        actions = np.empty(noise.shape, self._spec.actions.dtype)
        num_policies, num_rows = len(inference.policies), len(inference.obs)
        for k in range(num_policies):
            own = range(k, len(obs), num_policies)
            for start in range(0, len(own), num_rows):
                rows = own[start : start + num_rows]
                # The other rows of the pass keep old content, which affects these rows only if the
                # network mixes the rows of a batch.
                inference.obs[: len(rows)] = obs[rows]
                inference.noise[: len(rows)] = noise[rows]
                if masks is not None and inference.masks is not None:
                    inference.masks[: len(rows)] = masks.reshape(len(obs), -1)[rows]
                if inference.memories is not None:
                    inference.memories[: len(rows)] = states[rows]
                actions[rows] = inference.run(k)[0][: len(rows)].numpy()
                states[rows] = inference.next_memories[: len(rows)]
        memories[:] = states.reshape(memories.shape)
        found = actions.reshape(shape)
        return found if self._squash is None else self._squash(found)


def _parameters(checkpoint: Checkpoint, inference: Inference, path: Path) -> dict[str, Array]:
    """Returns the policies' parameters and buffers by name, checked against the networks."""
    values = {}
    for name, tensor in inference.policies.state_dict().items():
        array = checkpoint.arrays.get(f"learner/params/{name}")
        if array is None or array.shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{path} does not fit the network of its configuration: "
                f"it has no parameter {name} of shape {tuple(tensor.shape)}; use the version "
                "of the network with which the run was trained"
            )
        if array.dtype != _dtype(tensor) or not np.isfinite(array).all():
            raise CheckpointError(
                f"{path}: its parameter {name} has values that are not finite, or the dtype "
                f"{array.dtype} instead of {_dtype(tensor)}: evaluate another checkpoint"
            )
        values[name] = array
    return values


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    """Returns the dtype with which a checkpoint stores a tensor of a network."""
    # The learner's own values of a network that actors run with bf16 are fp32.
    is_bf16 = tensor.dtype == torch.bfloat16
    return np.dtype(np.float32) if is_bf16 else tensor.numpy(force=True).dtype
