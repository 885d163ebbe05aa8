"""Batched forward passes of constant shape, for actors and for evaluation.

The bits of a row's results depend on the shape of its batch. Every forward pass therefore has
`inference_batch` rows, whatever the number of requests. At a constant shape, the bits should depend
neither on the row's position nor on the other rows. `has_free_rows` tests this for the network,
precision and device of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.registry import build_algorithm
from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.activations import CachingLayers, relu_layer
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.device import record, resolve_device, sleep_until_done
from htsrl_cli.networks.distributions import mask_logits, most_likely, policy_actions, sample
from htsrl_cli.networks.registry import activation_layout, build_policies
from htsrl_cli.storage.memory import Array, ArrayType


@dataclass(frozen=True)
class InferenceSetup:
    """The set-up shared by all forward passes of a run.

    Attributes:
        batch: number of rows in every forward pass.
        fixed_rows: True to give every column a fixed row of the pass; see `Actor`.
        device: name of a torch device.
        precision: `fp32` or `bf16`.
        keeps_activations: True to keep activations for the learner; see `activations_to_keep`.
        shard_width: number of columns of a shard; None if all columns are one shard.
    """

    spec: EnvSpec
    network: NetworkConfig
    algo: AlgoConfig
    batch: int
    fixed_rows: bool
    device: str
    precision: str
    keeps_activations: bool
    shard_width: int | None = None

    @classmethod
    def of(
        cls, spec: EnvSpec, config: TrainConfig, keeps_activations: bool = False
    ) -> InferenceSetup:
        """Derives the set-up from a run's configuration, with `fixed_rows` set to False.

        Raises:
            ConfigError: the device does not exist.
        """
        return cls(
            spec=spec,
            network=config.network,
            algo=config.algo,
            batch=config.actors.inference_batch,
            fixed_rows=False,
            device=str(resolve_device("actors.device", config.actors.device)),
            precision=config.actors.precision,
            keeps_activations=keeps_activations,
            shard_width=RunPlan.of(config).num_columns // config.learner.num_shards,
        )


def activations_to_keep(spec: EnvSpec, config: TrainConfig) -> list[ArrayType]:
    """Returns the shape and dtype of one cell of each activation that actors keep for the learner.

    The list is empty unless the learner's forward pass would repeat the actors' passes: both must
    use the same parameters, the same precision and the CPU. See `htsrl_cli.networks.activations`.
    """
    actors, learner = config.actors, config.learner
    devices = {
        resolve_device("actors.device", actors.device).type,
        resolve_device("learner.device", learner.device).type,
    }
    alike = devices == {"cpu"} and actors.precision == learner.precision
    if not (alike and build_algorithm(config.algo).at_behaviour):
        return []
    return activation_layout(spec, config.network, actors.precision)


class Inference:
    """The policies of a run, with the buffers for forward passes of constant shape.

    On a GPU, each policy's pass is recorded once as a CUDA graph, including sampling and the copies
    to and from the GPU. The graph is then replayed on a stream that has a higher priority than the
    learner's stream.

    Args:
        greedy: True to take the most likely actions instead of sampling.

    Attributes:
        policies: the `ActorCritic` networks.
        obs: array [batch, *obs_shape] to fill before `run`.
        noise: array float32 [batch, D] to fill before `run`, with D action dimensions.
        masks: array bool [batch, M] to fill before `run`, True for allowed actions; None if the
            environment gives no masks.
        activations: activations of the last `run`, each [batch, ...]; empty if they are not kept.
        memories: array float32 [batch, S] of memory states to fill before `run`; None if the
            policies have no memory.
        next_memories: memory states after the last `run`, float32 [batch, S].
    """

    def __init__(self, setup: InferenceSetup, greedy: bool = False) -> None:
        self._device = torch.device(setup.device)
        self.policies = build_policies(
            setup.spec, setup.network, setup.algo, setup.precision, self._device
        )
        self._networks: list[ActorCritic] = list(self.policies)  # type: ignore[arg-type]
        self._state = self.policies.state_dict()
        self._choose = most_likely if greedy else sample
        self._actions = policy_actions(setup.spec.actions, setup.algo)
        self._keeps_activations = setup.keeps_activations
        self.activations: list[Tensor] = []
        self._obs = torch.from_numpy(
            np.zeros((setup.batch, *setup.spec.obs_shape), setup.spec.obs_dtype)
        )
        self._noise = torch.zeros(setup.batch, setup.spec.actions.num_dims)
        width = next(iter(self._networks)).memory_width
        self._memories = torch.zeros(setup.batch, width) if width else None
        self.next_memories: Array = np.zeros((setup.batch, width), np.float32)
        self._masks: Tensor | None = None
        if setup.spec.has_masks:
            self._masks = torch.ones(setup.batch, setup.spec.actions.num_choices, dtype=torch.bool)
        self._on_stream: AbstractContextManager[object] = nullcontext()
        self._recorded: list[tuple[torch.cuda.CUDAGraph, list[Tensor]]] = []
        if self._device.type == "cuda":
            self._obs, self._noise = self._obs.pin_memory(), self._noise.pin_memory()
            self._masks = None if self._masks is None else self._masks.pin_memory()
            self._memories = None if self._memories is None else self._memories.pin_memory()
            self._stream = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                self._device, priority=-1
            )
            self._on_stream = torch.cuda.stream(self._stream)
            self._recorded = [self._record(policy) for policy in range(len(self.policies))]
        self.obs: Array = self._obs.numpy()
        self.noise: Array = self._noise.numpy()
        self.masks: Array | None = None if self._masks is None else self._masks.numpy()
        self.memories: Array | None = None if self._memories is None else self._memories.numpy()

    @torch.no_grad()
    def load(self, values: Mapping[str, Array]) -> None:
        """Copies `values` into the policies, rounded to the policies' precision.

        Args:
            values: parameters and buffers by name.
        """
        with self._on_stream:
            for name, tensor in self._state.items():
                tensor.copy_(torch.from_numpy(values[name]))

    @torch.inference_mode()
    def run(self, policy: int) -> tuple[Tensor, Tensor, Tensor]:
        """Computes actions [batch, D], log-probabilities [batch] and values [batch].

        The results are on the CPU. The next call may overwrite them. This also sets `activations`
        if they are kept, and `next_memories` if the policies have a memory.

        Args:
            policy: index of the policy to use.
        """
        if self._recorded:
            graph, (actions, log_probs, values, *states) = self._recorded[policy]
            with self._on_stream:
                graph.replay()
                sleep_until_done(self._device)
            if states:
                self.next_memories = states[0].numpy()
            return actions, log_probs, values
        network = self._networks[policy]
        if self._memories is None:
            layers = CachingLayers() if self._keeps_activations else None
            params, values = network(self._obs.to(self._device), layers or relu_layer)
            if layers:
                self.activations = layers.outputs
        else:
            before = self._memories.to(self._device)
            params, values, after = network.step(self._obs.to(self._device), before)
            self.next_memories = after.cpu().numpy()
        params = mask_logits(params.cpu(), self._masks)
        actions, log_probs = self._choose(self._actions, params, self._noise)
        return actions, log_probs, values.cpu()

    # Recording does not use inference mode: torch shares some tensors among all recordings, and
    # the learner's recordings could not change tensors that were made in inference mode.
    @torch.no_grad()
    def _record(self, policy: int) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        """Records a policy's pass as a CUDA graph; returns the graph and its result tensors."""
        found: list[Tensor] = []

        def work() -> None:
            obs, noise = (
                array.to(self._device, non_blocking=True) for array in (self._obs, self._noise)
            )
            states: list[Tensor] = []
            if self._memories is None:
                params, values = self._networks[policy](obs)
            else:
                before = self._memories.to(self._device, non_blocking=True)
                params, values, after = self._networks[policy].step(obs, before)
                states = [after]
            if self._masks is not None:
                params = mask_logits(params, self._masks.to(self._device, non_blocking=True))
            results = (*self._choose(self._actions, params, noise), values, *states)
            if not found:
                found.extend(torch.empty_like(r, device="cpu", pin_memory=True) for r in results)
            for kept, result in zip(found, results, strict=True):
                kept.copy_(result, non_blocking=True)

        graph, _ = record(work, self._stream)
        return graph, found


# Number of random inputs with which rows are tested. Summing in another order changes the bits of
# some rows only, so a single input could miss the difference.
_TRIALS = 8


def has_free_rows(setup: InferenceSetup, values: Mapping[str, Array]) -> bool:
    """Returns True if the bits of a row's results depend on neither its position nor other rows.

    Args:
        values: the policies' parameters and buffers by name; random values replace the weights.
    """
    batch = setup.batch
    shifts = {1, batch // 3, batch // 2, batch - 1} - {0}
    return _keeps_bits(setup, values, [(shift, shift % 2) for shift in shifts])


def has_independent_rows(setup: InferenceSetup, values: Mapping[str, Array]) -> bool:
    """Returns True if the bits of a row's results do not depend on other rows.

    They may depend on the row's position in the batch.

    Args:
        values: the policies' parameters and buffers by name; random values replace the weights.
    """
    return _keeps_bits(setup, values, [(0, 0), (0, 1)])


def _keeps_bits(
    setup: InferenceSetup, values: Mapping[str, Array], changes: Sequence[tuple[int, int]]
) -> bool:
    """Returns True if a row's results keep their bits when the row moves or other rows change.

    Args:
        changes: pairs of integers (shift, first); each pair is one test. A test rotates the rows by
            `shift` positions. It then replaces the observations and memory states of every second
            row, starting with row `first`, by random values. The results of the other rows must not
            have changed.
    """
    inference = Inference(setup)
    rng = np.random.default_rng(0)
    inference.load(_random_weights(rng, inference, values))
    for _ in range(_TRIALS):
        noise = rng.random(inference.noise.shape, dtype=np.float32)
        obs, states = random_obs(rng, inference.obs), random_obs(rng, inference.next_memories)
        expected = _results(inference, obs, noise, states)
        for shift, first in changes:
            moved, moved_states = np.roll(obs, shift, axis=0), np.roll(states, shift, axis=0)
            for array in (moved, moved_states):
                array[first::2] = random_obs(rng, array[first::2])
            kept = torch.arange(1 - first, setup.batch, 2)
            results = _results(inference, moved, np.roll(noise, shift, axis=0), moved_states)
            for result, reference in zip(results, expected, strict=True):
                if not torch.equal(result[kept], reference.roll(shift, 0)[kept]):
                    return False
    return True


def _results(inference: Inference, obs: Array, noise: Array, states: Array) -> list[Tensor]:
    """Returns copies of everything that a pass of the first policy computes.

    One policy is enough, because all policies have the same shapes.
    """
    inference.obs[:], inference.noise[:] = obs, noise
    if inference.memories is not None:
        inference.memories[:] = states
    found = (*inference.run(0), *inference.activations, torch.from_numpy(inference.next_memories))
    return [result.clone() for result in found]


def _random_weights(
    rng: np.random.Generator, inference: Inference, values: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns `values` with random weights, so that every layer affects the last bits of results.

    The initial weights of the policy head are so small that rounding hides differences in logits.
    """
    weights = {name for name, p in inference.policies.named_parameters() if p.dim() > 1}
    return {
        name: (rng.standard_normal(a.shape) / np.sqrt(a[0].size)).astype(a.dtype)
        if name in weights
        else a
        for name, a in values.items()
    }


def random_obs(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Returns random observations with the shape and dtype of `like`."""
    if like.dtype == np.uint8:
        return rng.integers(0, 256, like.shape, dtype=np.uint8)
    return rng.standard_normal(like.shape).astype(like.dtype)
