"""Gradient engines, which compute the gradients of minibatches on CPU threads or on a GPU.

A minibatch is cut into micro-batches, whose gradients are summed in a fixed order. On a CPU, a
small pool of threads computes these gradients. Each gradient is computed on a single thread, so the
result does not depend on the number of threads. The cores are also used better than if several
threads shared each operation. A GPU computes one gradient after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.base import Algorithm, OldPolicy, Prediction, Targets
from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.config.sections import LearnerConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.learning.batch import Batch
from htsrl_cli.learning.micro_batches import cut, num_micro_batches
from htsrl_cli.learning.sequences import Evaluated, Sequences, evaluations
from htsrl_cli.networks.activations import CachedLayers, CachingLayers, as_tensor, relu_layer
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.device import pin, record, unpin
from htsrl_cli.networks.distributions import log_prob_entropy, mask_logits, policy_actions
from htsrl_cli.networks.registry import activation_layout, build_policies
from htsrl_cli.ranks.shards import by_shard, tree_sum
from htsrl_cli.storage.memory import Array
from htsrl_cli.workers.scheduling import stay_in_background


class Gradient(NamedTuple):
    """The gradient of a minibatch.

    Attributes:
        of_policies: gradients in float32, summed over this rank's shards; entry [k][i] belongs to
            parameter i of policy k.
        names: names of the parts of the loss.
        losses: the parts of each micro-batch's loss, float32 [K, S, micro-batches, parts] for K
            policies and this rank's S shards. The sum of part p over one policy's micro-batches is
            part p of the policy's loss.
    """

    of_policies: list[list[Tensor]]
    names: list[str]
    losses: Tensor


class _Piece(NamedTuple):
    """A micro-batch of a shard: its rows' indices in the batch [n], and their advantages [n].

    The advantages are those that `Algorithm.weigh` returned.
    """

    policy: int
    shard: int
    rows: Tensor
    advantages: Tensor


class GradientEngine(ABC):
    """The base class of gradient engines.

    Each engine has its own copies of the policies, in the learner's precision. With K policies,
    policy k learns only from columns k, k + K, and so on.

    Args:
        algorithm: the algorithm, which defines the loss.
        config: section `learner`: precision, number of threads, and size of micro-batches.
        num_shards: number of shards that this rank hosts.
        inference_batch: number of rows of an actor's pass, which policies with a memory also have
            in `evaluate`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        network: NetworkConfig,
        algo: AlgoConfig,
        algorithm: Algorithm,
        config: LearnerConfig,
        device: torch.device,
        num_shards: int,
        inference_batch: int = 1,
    ) -> None:
        self._inference_batch = inference_batch
        self._algorithm = algorithm
        self._num_shards = num_shards
        self._is_whole = config.num_shards == 1
        self._actions = policy_actions(spec.actions, algo)
        self._micro_batch = config.micro_batch
        self._num_threads = config.num_threads
        self._device = device
        self._policies = build_policies(spec, network, algo, config.precision, device)
        self._state: list[Tensor] = list(self._policies.state_dict().values())
        # If the gradient is computed at the parameters of `evaluate`, it needs no second forward
        # pass. A GPU's recording includes the forward pass.
        is_repeated = algorithm.makes_one_step and algorithm.reevaluates and device.type == "cpu"
        self._layout = activation_layout(spec, network, config.precision) if is_repeated else []
        self._kept: list[Tensor] = []

    @abstractmethod
    def _map(self, work: Callable[[Any], Any], pieces: Sequence[Any]) -> Iterable[Any]:
        """Applies `work` to all pieces; yields the results in the order of the pieces."""

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        """Copies parameters and buffers into the policies, rounded to the learner's precision.

        Args:
            state: the parameters and buffers, in the order of the policies' `state_dict`.
        """
        torch._foreach_copy_(self._state, state)

    def hold(self, batch: Batch) -> Batch:
        """Prepares a batch for `gradient`.

        Returns:
            The prepared batch, which the next call may overwrite.
        """
        return batch

    def gradient(
        self, batch: Batch, rows: Tensor, advantages: Tensor, num_rows: int, remaining: float
    ) -> Gradient:
        """Computes the gradient of a minibatch's loss, summed over this rank's shards.

        Each shard's micro-batches are summed in order, and then the shards in a binary tree.

        Args:
            batch: a batch that `hold` returned.
            rows: the minibatch's row indices, int64 [S, n], for each shard. All policies use them.
                Index i stands for row i of the policy's own rows, not of all rows of the batch.
                With a memory, these are all rows of some columns, in time-major order.
            advantages: what `Algorithm.weigh` returned for these rows, float32 [K, S, n].
            num_rows: number of rows of the minibatch in all shards of the run.
            remaining: fraction of the run's updates not yet made, 1 for the first update.

        Returns:
            The gradient, which the next call may overwrite.
        """
        num_policies, num_shards = len(self._policies), len(rows)

        def micro_batch(piece: _Piece) -> tuple[list[Tensor], dict[str, Tensor]]:
            loss, parts = self._loss(batch, piece, num_rows, remaining)
            parameters = list(self._policies[piece.policy].parameters())
            # For parameters that a network does not use, the gradient is zeros instead of None.
            gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
            return [g.float() for g in gradient], parts

        length = batch.sequences.num_steps if batch.sequences else 1
        pieces: list[_Piece] = []
        for policy in range(num_policies):
            for shard in range(num_shards):
                own = rows[shard] * num_policies + policy
                whole = _Piece(policy, shard, own, advantages[policy, shard])
                pieces += self._pieces(whole, length)
        gradients: list[list[list[Tensor]]] = [[] for _ in range(num_policies)]
        losses: list[Tensor] = []
        for piece, (gradient, parts) in zip(pieces, self._map(micro_batch, pieces), strict=True):
            of_policy = gradients[piece.policy]
            if piece.shard == len(of_policy):
                of_policy.append(gradient)
            else:
                torch._foreach_add_(of_policy[piece.shard], gradient)
            losses.append(torch.stack([*parts.values()]))
        return Gradient(
            [tree_sum(of_policy) for of_policy in gradients],
            [*parts],
            torch.stack(losses).view(num_policies, num_shards, -1, len(parts)),
        )

    def evaluate(
        self,
        obs: Tensor,
        actions: Tensor,
        masks: Tensor | None,
        sequences: Sequences | None = None,
    ) -> tuple[OldPolicy, list[Tensor]]:
        """Evaluates a slot with the loaded parameters.

        Args:
            obs: observations [N + B, *obs_shape]; the last B rows have no action.
            actions: actions [N, D].
            masks: see `Batch`.
            sequences: the memory of the columns; None if the policies have none.

        Returns:
            The log-probabilities [N] of the actions and the values [N + B] of the observations; and
            the activations [N + B, ...] for `Batch.activations`, which the next call overwrites.
            There are none if the algorithm or the device does not use them.
        """
        found = OldPolicy(*(torch.empty(len(a), device=self._device) for a in (actions, obs)))
        if sequences is not None:
            slot = Evaluated.of(obs, actions, masks, sequences)
            sizes = self._num_shards, self._inference_batch
            passes = evaluations(self._policies, self._actions, slot, *sizes, found)
            for _ in self._map(lambda work: work(), passes):
                pass
            return found, []
        if self._layout and not self._kept:
            self._kept = [as_tensor(np.empty((len(obs), *s), dtype)) for s, dtype in self._layout]

        @torch.no_grad()
        def evaluate(piece: tuple[int, slice | Tensor]) -> None:
            policy, rows = piece
            layers = CachingLayers() if self._layout else None
            params, values = self._policies[policy](obs[rows], layers or relu_layer)
            found.values[rows] = values
            # Rows are in time-major order, so those without an action come last.
            acted = rows if isinstance(rows, slice) else rows[rows < len(actions)]
            chosen = actions[acted]
            allowed = None if masks is None else masks[acted]
            logits = mask_logits(params[: len(chosen)], allowed)
            log_probs, _ = log_prob_entropy(self._actions, logits, chosen)
            found.log_probs[acted] = log_probs
            for kept, output in zip(self._kept, layers.outputs if layers else (), strict=True):
                kept[rows] = output

        for _ in self._map(evaluate, self._evaluated(len(obs), len(obs) - len(actions))):
            pass
        return found, self._kept

    def _evaluated(self, num_rows: int, num_columns: int) -> list[tuple[int, slice | Tensor]]:
        """Returns the micro-batches of a slot: the index of the policy, and indices of rows.

        A micro-batch has rows of one shard only, so that its size does not depend on how many
        shards a rank hosts.
        """
        num_policies = len(self._policies)
        pieces: list[tuple[int, slice | Tensor]] = []
        of_shard = num_rows // (num_policies * self._num_shards)
        number = num_micro_batches(of_shard, self._micro_batch)
        edges = [of_shard * k // number for k in range(number + 1)]
        if self._is_whole:
            # Slices make views, where indices would copy the observations.
            return [
                (policy, slice(num_policies * start + policy, num_policies * stop, num_policies))
                for policy in range(num_policies)
                for start, stop in pairwise(edges)
            ]
        cells = torch.arange(num_rows, device=self._device).view(-1, num_columns)
        for policy, shards in enumerate(by_shard(cells, num_policies, self._num_shards)):
            for shard in shards:
                pieces += [(policy, shard[start:stop]) for start, stop in pairwise(edges)]
        return pieces

    @abstractmethod
    def pin(self, arrays: Sequence[Array]) -> None:
        """Prepares arrays for fast copies to the device, until `close` is called."""

    @abstractmethod
    def close(self) -> None:
        """Releases threads and pinned memory."""

    def _pieces(self, whole: _Piece, length: int) -> Iterator[_Piece]:
        """Cuts the rows of one policy and one shard into micro-batches; see `cut`."""
        policy, shard, *arrays = whole
        parts = (cut(array, self._micro_batch, length) for array in arrays)
        yield from (_Piece(policy, shard, *of_part) for of_part in zip(*parts, strict=True))

    def _loss(
        self, batch: Batch, piece: _Piece, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        policy, _, rows, advantages = piece
        obs, network = batch.obs.index_select(0, rows), self._policies[policy]
        if batch.sequences is None:
            cached = [array.index_select(0, rows) for array in batch.activations]
            params, values = network(obs, CachedLayers(cached) if cached else relu_layer)
        else:
            params, values = batch.sequences.unroll(cast(ActorCritic, network), obs, rows)
        params = mask_logits(params, None if batch.masks is None else batch.masks[rows])
        noise = None if batch.noise is None else batch.noise[rows]
        log_probs, entropy = log_prob_entropy(self._actions, params, batch.actions[rows], noise)
        return self._algorithm.loss(
            Prediction(log_probs, entropy, values),
            OldPolicy(*(array[rows] for array in batch.old)),
            Targets(advantages, batch.targets.returns[rows], batch.targets.weights[rows]),
            num_rows,
            remaining,
        )


class PoolEngine(GradientEngine):
    """An engine that computes each micro-batch on one thread of a small pool."""

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._num_threads, "learner", self._begin_thread)

    def _begin_thread(self) -> None:
        # OpenMP has a separate number of threads for each calling thread. Without this call, a new
        # thread would compute its first matrix products on all cores, and their bits would differ.
        torch.set_num_threads(1)
        if self._device.type == "cpu":
            stay_in_background()

    def _map(self, work: Callable[[Any], Any], pieces: Sequence[Any]) -> Iterable[Any]:
        # Another thread does not speed up a single piece, and the handover takes as long as a pass
        # of a small network.
        return map(work, pieces) if len(pieces) == 1 else self._pool.map(work, pieces)

    def pin(self, arrays: Sequence[Array]) -> None:
        """Does nothing: the CPU reads the arrays in place."""

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(cancel_futures=True)


class GpuEngine(GradientEngine):
    """An engine that records a gradient's computation once, as a CUDA graph, and then replays it.

    Nothing is recorded if the loss function changes from update to update. All work starts in the
    calling thread: one thread is enough to keep a GPU busy, and a recording captures the work of
    only one thread.
    """

    _recorded: tuple[torch.cuda.CUDAGraph, Gradient] | None = None
    _held: Batch | None = None
    _pinned: Sequence[Array] = ()

    def _map(self, work: Callable[[Any], Any], pieces: Sequence[Any]) -> Iterable[Any]:
        return map(work, pieces)

    def hold(self, batch: Batch) -> Batch:
        """Returns the batch of the first call, with `batch.tensors()` copied into its tensors.

        The recording always reads the same memory. If the loss function changes from update to
        update, nothing is recorded, and `batch` itself is returned.
        """
        if self._algorithm.anneals_loss:
            return batch
        if self._held is None:
            self._held = batch
        else:
            for held, tensor in zip(self._held.tensors(), batch.tensors(), strict=True):
                held.copy_(tensor)
        return self._held

    def gradient(
        self, batch: Batch, rows: Tensor, advantages: Tensor, num_rows: int, remaining: float
    ) -> Gradient:
        """Computes the gradient of a minibatch's loss, by replaying the recording if possible.

        The first call makes the recording, unless the loss function changes from update to update.
        """
        if self._algorithm.anneals_loss:
            return super().gradient(batch, rows, advantages, num_rows, remaining)
        if self._recorded is None:
            self._rows, self._advantages = rows.clone(), advantages.clone()
            compute = super().gradient
            self._recorded = record(
                lambda: compute(batch, self._rows, self._advantages, num_rows, remaining),
                torch.cuda.Stream(self._device),  # type: ignore[no-untyped-call]
            )
        graph, gradient = self._recorded
        self._rows.copy_(rows)
        self._advantages.copy_(advantages)
        graph.replay()
        return gradient

    def pin(self, arrays: Sequence[Array]) -> None:
        """Locks the pages of arrays in memory, so that the GPU copies from them directly.

        Raises:
            RunError: the driver cannot lock the pages.
        """
        pinned: list[Array] = []
        self._pinned = pinned
        for array in arrays:
            pin(array)
            pinned.append(array)

    def close(self) -> None:
        """Unlocks the arrays that `pin` has locked."""
        for array in self._pinned:
            unpin(array)
        self._pinned = ()


def engine_for(device: torch.device) -> type[GradientEngine]:
    """Returns the engine class for a device."""
    return GpuEngine if device.type == "cuda" else PoolEngine
