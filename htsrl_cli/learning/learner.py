"""The learner: makes the next parameters from a full slot.

A minibatch is cut into micro-batches. Each is computed on a single thread by a small pool, and
their gradients are summed in order: the result does not depend on the number of threads, and the
cores are better used than by threads inside an operation. A GPU computes one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.algorithms import OldPolicy, Prediction, Targets, build_algorithm
from htsrl_cli.algorithms.losses import Rollout
from htsrl_cli.config.sections import AlgoConfig, LearnerConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.errors import NonFiniteError
from htsrl_cli.networks.activations import CachedLayers, as_tensor, relu_layer
from htsrl_cli.networks.device import pin, record, settle_on, sleep_until_done, unpin
from htsrl_cli.networks.policy import ActorCritic, build_policies, initialize, log_prob_entropy
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.storage import Slot
from htsrl_cli.workers.scheduling import stay_in_background


class Batch(NamedTuple):
    """A slot as N = T * B rows, time-major: obs [N, *obs_shape], actions [N, D], the rest [N].

    Attributes:
        activations: those that were kept, each [N, ...]; none where passes are to be made.
    """

    obs: Tensor
    actions: Tensor
    old: OldPolicy
    targets: Targets
    activations: list[Tensor]


class _Piece(NamedTuple):
    """A micro-batch: number of the policy, rows of the batch [n] and weighed advantages [n]."""

    policy: int
    rows: Tensor
    advantages: Tensor


class _Gradient(NamedTuple):
    """Of a minibatch.

    Attributes:
        of_policies: float32, by policy and parameter.
        norms: of those of each policy, float32 [parameters].
        names, losses: parts of the loss, float32 [micro-batches, parts].
    """

    of_policies: list[list[Tensor]]
    norms: list[Tensor]
    names: list[str]
    losses: Tensor


class Learner:
    """Policies, optimizer, and the update from one version of the parameters to the next.

    Of K policies, number k learns from columns k, k + K, ... only: they share nothing but the
    pool of threads and the optimizer, which treats every parameter by itself.

    Args:
        num_updates: updates in the whole run, over which schedules fall.
        lag: versions between a slot's parameters and those an update starts from, 1 or 0.
        seed: the run's seed.
    """

    def __init__(
        self,
        spec: EnvSpec,
        algo: AlgoConfig,
        config: LearnerConfig,
        device: torch.device,
        num_updates: int,
        lag: int,
        seed: int,
    ) -> None:
        settle_on(device)
        self._algorithm = build_algorithm(algo)
        self._max_grad_norm = algo.max_grad_norm
        self._micro_batch = config.micro_batch
        self._device = device
        self._num_updates = num_updates
        self._lag = lag
        self._seed = seed
        self._actions = spec.actions
        self.policies = build_policies(spec, algo, "fp32", torch.device("cpu"))
        for index, policy in enumerate(self.policies):
            assert isinstance(policy, ActorCritic)
            initialize(policy, seed, index)
        self.policies.to(device)
        self._parameters: list[Tensor] = list(self.policies.parameters())
        # What is differentiated: in the learner's precision, shared by all threads.
        self._compute = build_policies(spec, algo, config.precision, device)
        self._compute_parameters: list[Tensor] = list(self._compute.parameters())
        # θ[j-1], where the gradient of A2C is taken (paper, Eq. 6); θ[1] = θ[0].
        self._previous = _clones(self._parameters)
        self._optimizer = self._algorithm.build_optimizer(self._parameters)
        self.num_updates_done = 0
        begin = stay_in_background if device.type == "cpu" else None
        self._pool = ThreadPoolExecutor(config.num_threads, "learner", begin)
        on_cuda = device.type == "cuda"
        # A GPU is kept busy by one thread; recordings take in what that thread does.
        self._map = map if on_cuda else self._pool.map
        # The gradient of a minibatch is recorded, where the loss stays the same function.
        self._replays = on_cuda and not self._algorithm.anneals_loss
        self._recorded: tuple[torch.cuda.CUDAGraph, _Gradient] | None = None
        self._kept: Batch | None = None
        self._pinned: list[Array] = []

    def pin(self, slots: Sequence[Slot]) -> None:
        """Locks the pages of these slots' observations for copies to a GPU; until `close`."""
        if self._device.type == "cuda":
            for slot in slots:
                pin(slot.obs)
                self._pinned.append(slot.obs)

    def close(self) -> None:
        """Ends the threads, and what `pin` began."""
        self._pool.shutdown(cancel_futures=True)
        while self._pinned:
            unpin(self._pinned.pop())

    def update(
        self, slot: Slot, check: Callable[[], None], activations: Sequence[Array] = ()
    ) -> dict[str, float]:
        """Learns from a full slot: θ[j] becomes θ[j+1]. Returns what to log.

        Args:
            slot: filled with θ[j - lag].
            check: called before every minibatch; raises to give up.
            activations: kept when the slot was filled, for an algorithm whose gradient is taken
                at those parameters; see `Ring.activations`.

        Raises:
            NonFiniteError: a loss or gradient is not finite. It has not been applied, but the
                minibatches before it have: go on from a checkpoint.
        """
        started_from = _clones(self._parameters)
        batch = self._batch(slot, activations)
        if self._replays:
            batch = self._in_place(batch)
        logged = []
        num_rows = len(batch.targets.returns) // len(self.policies)
        for rows in self._algorithm.minibatches(self._seed, self.num_updates_done, num_rows):
            check()
            # A2C: the data are on-policy for the parameters that collected them. There the
            # gradient is taken; it is applied to θ[j].
            at_previous = self._algorithm.at_behaviour and self._lag
            self._compute_with(self._previous if at_previous else self._parameters)
            logged.append(self._minibatch(batch, torch.from_numpy(rows).to(self._device)))
        self._previous = started_from
        means = {name: float(np.mean([entry[name] for entry in logged])) for name in logged[0]}
        means["loss/explained_variance"] = _explained_variance(batch)
        means["learner/learning_rate"] = self._learning_rate()
        self.num_updates_done += 1
        return means

    @torch.no_grad()
    def _compute_with(self, parameters: list[Tensor]) -> None:
        torch._foreach_copy_(self._compute_parameters, parameters)

    def _minibatch(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """One optimizer step on `rows` of every policy's share of the batch."""
        gradient = (self._replay if self._replays else self._gradient)(batch, rows)
        sleep_until_done(self._device)
        sums = [sum(parts) for parts in zip(*gradient.losses.cpu().tolist(), strict=True)]
        logged = {
            f"loss/{name}": total / len(self.policies)
            for name, total in zip(gradient.names, sums, strict=True)
        }
        logged["learner/grad_norm"] = self._apply(gradient, logged)
        return logged

    def _replay(self, batch: Batch, rows: Tensor) -> _Gradient:
        """As `_gradient`, in one call; `batch` is from `_in_place`."""
        if self._recorded is None:
            self._rows = rows.clone()
            self._recorded = record(
                lambda: self._gradient(batch, self._rows),
                torch.cuda.Stream(self._device),  # type: ignore[no-untyped-call]
            )
        graph, gradient = self._recorded
        self._rows.copy_(rows)
        graph.replay()
        return gradient

    def _in_place(self, batch: Batch) -> Batch:
        """The batch in memory of the first one: recordings read from there."""
        if self._kept is None:
            self._kept = batch
        else:
            for kept, tensor in zip(_tensors(self._kept), _tensors(batch), strict=True):
                kept.copy_(tensor)
        return self._kept

    def _gradient(self, batch: Batch, rows: Tensor) -> _Gradient:
        num_policies, num_rows = len(self.policies), len(rows)

        def micro_batch(piece: _Piece) -> tuple[list[Tensor], dict[str, Tensor]]:
            loss, parts = self._loss(batch, piece, num_rows)
            gradient = torch.autograd.grad(loss, list(self._compute[piece.policy].parameters()))
            return [g.float() for g in gradient], parts

        pieces = [
            piece
            for policy in range(num_policies)
            for piece in self._pieces(batch, rows * num_policies + policy, policy)
        ]
        gradients: list[list[Tensor]] = []
        losses: list[Tensor] = []
        for piece, (gradient, parts) in zip(pieces, self._map(micro_batch, pieces), strict=True):
            if piece.policy == len(gradients):
                gradients.append(gradient)
            else:
                torch._foreach_add_(gradients[piece.policy], gradient)
            losses.append(torch.stack([*parts.values()]))
        norms = [
            torch.stack([torch.linalg.vector_norm(g) for g in gradient]) for gradient in gradients
        ]
        return _Gradient(gradients, norms, [*parts], torch.stack(losses))

    def _pieces(self, batch: Batch, rows: Tensor, policy: int) -> Iterator[_Piece]:
        """One policy's rows of a minibatch, cut into micro-batches."""
        advantages = self._algorithm.weigh(batch.targets.advantages[rows])
        number = num_micro_batches(len(rows), self._micro_batch)
        wholes = (torch.tensor_split(whole, number) for whole in (rows, advantages))
        yield from (_Piece(policy, *parts) for parts in zip(*wholes, strict=True))

    def _loss(self, batch: Batch, piece: _Piece, num_rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        policy, rows, advantages = piece
        cached = [array.index_select(0, rows) for array in batch.activations]
        params, values = self._compute[policy](
            batch.obs.index_select(0, rows), CachedLayers(cached) if cached else relu_layer
        )
        log_probs, entropy = log_prob_entropy(self._actions, params, batch.actions[rows])
        return self._algorithm.loss(
            Prediction(log_probs, entropy, values),
            OldPolicy(*(array[rows] for array in batch.old)),
            Targets(advantages, batch.targets.returns[rows]),
            num_rows,
            self._remaining(),
        )

    def _apply(self, gradient: _Gradient, losses: dict[str, float]) -> float:
        """Clips each policy's gradient and steps the optimizer; returns their mean norm before."""
        totals: list[float] = (
            torch.stack([torch.linalg.vector_norm(norms) for norms in gradient.norms])
            .cpu()
            .tolist()
        )
        if not np.isfinite([*totals, *losses.values()]).all():
            raise NonFiniteError(self._name_non_finite(losses, torch.cat(gradient.norms).cpu()))
        for of_policy, norm in zip(gradient.of_policies, totals, strict=True):
            torch._foreach_mul_(of_policy, min(1.0, self._max_grad_norm / (norm + 1e-6)))
        flat = [g for of_policy in gradient.of_policies for g in of_policy]
        for parameter, g in zip(self._parameters, flat, strict=True):
            parameter.grad = g
        self._optimizer.param_groups[0]["lr"] = self._learning_rate()
        self._optimizer.step()
        return sum(totals) / len(totals)

    def _name_non_finite(self, losses: dict[str, float], norms: Tensor) -> str:
        bad = [name for name, value in losses.items() if not np.isfinite(value)]
        names = [f"gradient of {name}" for name, _ in self.policies.named_parameters()]
        bad += [n for n, norm in zip(names, norms.tolist(), strict=True) if not np.isfinite(norm)]
        return (
            f"update {self.num_updates_done}: not finite: {', '.join(bad[:4])}; the run stops "
            "before applying it; lower algo.learning_rate or set learner.precision=fp32"
        )

    def _batch(self, slot: Slot, activations: Sequence[Array]) -> Batch:
        def tensor(array: Array) -> Tensor:
            return torch.from_numpy(array).to(self._device, non_blocking=True)

        obs, actions = tensor(slot.obs).flatten(0, 1), tensor(slot.actions).flatten(0, 1)
        values = torch.from_numpy(slot.values)
        old = OldPolicy(tensor(slot.log_probs).flatten(), tensor(slot.values).flatten())
        if self._lag and self._algorithm.reevaluates:
            old = self._evaluate(obs, actions)
            values = old.values.cpu().view(values.shape)
        # On the CPU: hundreds of operations on a few numbers each.
        rollout = Rollout(
            torch.from_numpy(slot.rewards),
            torch.from_numpy(slot.terminated),
            torch.from_numpy(slot.truncated),
            values,
            torch.from_numpy(slot.final_values),
        )
        targets = Targets(
            *(array.flatten().to(self._device) for array in self._algorithm.targets(rollout))
        )
        num_rows = len(actions)
        return Batch(
            obs[:num_rows],
            actions,
            old._replace(values=old.values[:num_rows]),
            targets,
            [as_tensor(array).flatten(0, 1) for array in activations],
        )

    def _evaluate(self, obs: Tensor, actions: Tensor) -> OldPolicy:
        """What θ[j] says of a slot: log-probabilities [N] and values [N + B].

        Args:
            obs: [N + B, *obs_shape]; the last B have no action.
            actions: [N, D].
        """
        self._compute_with(self._parameters)
        num_policies = len(self.policies)
        said = OldPolicy(*(torch.empty(len(a), device=self._device) for a in (actions, obs)))

        @torch.no_grad()
        def evaluate(piece: tuple[int, slice]) -> None:
            policy, rows = piece
            params, said.values[rows] = self._compute[policy](obs[rows])
            chosen = actions[rows]
            log_probs, _ = log_prob_entropy(self._actions, params[: len(chosen)], chosen)
            said.log_probs[rows] = log_probs

        num_rows = len(obs) // num_policies
        number = num_micro_batches(num_rows, self._micro_batch)
        edges = [num_policies * (num_rows * k // number) for k in range(number + 1)]
        pieces = [
            (policy, slice(start + policy, stop + policy, num_policies))
            for policy in range(num_policies)
            for start, stop in pairwise(edges)
        ]
        for _ in self._map(evaluate, pieces):
            pass
        return said

    def _remaining(self) -> float:
        return 1.0 - self.num_updates_done / self._num_updates

    def _learning_rate(self) -> float:
        return self._algorithm.learning_rate(self._remaining())

    # Arrays may share the learner's memory: they say what they say until the next update.

    def optimizer_state(self) -> dict[str, Array]:
        """The optimizer's arrays by name, `<quantity>/<parameter>`."""
        return {
            f"{key}/{name}": _numpy(value)
            for name, parameter in self.policies.named_parameters()
            for key, value in self._optimizer.state[parameter].items()
        }

    def parameters(self) -> dict[str, Array]:
        """θ[j] by name."""
        return {name: _numpy(p) for name, p in self.policies.named_parameters()}

    def state(self) -> dict[str, Array]:
        """The arrays that going on exactly needs: θ[j], θ[j-1] and the optimizer's state."""
        return {
            **{f"params/{name}": array for name, array in self.parameters().items()},
            **{f"optimizer/{name}": array for name, array in self.optimizer_state().items()},
            **{
                f"previous/{name}": _numpy(array)
                for (name, _), array in zip(
                    self.policies.named_parameters(), self._previous, strict=True
                )
            },
        }

    def load_state(self, arrays: dict[str, Array], num_updates_done: int) -> None:
        """Restores `state`; other arrays are ignored."""
        self.num_updates_done = num_updates_done
        parameters = dict(self.policies.named_parameters())
        with torch.no_grad():
            for (name, parameter), previous in zip(parameters.items(), self._previous, strict=True):
                parameter.copy_(torch.from_numpy(arrays[f"params/{name}"].copy()))
                previous.copy_(torch.from_numpy(arrays[f"previous/{name}"].copy()))
        for key, array in arrays.items():
            if key.startswith("optimizer/"):
                _, quantity, name = key.split("/")
                value = torch.from_numpy(array.copy()).to(self._device)
                # Laid out in memory like the parameter, as the optimizer's own state is.
                like = torch.empty_like(parameters[name]) if value.ndim else value.clone()
                self._optimizer.state[parameters[name]][quantity] = like.copy_(value)


def num_micro_batches(num_rows: int, most: int) -> int:
    """How many micro-batches a minibatch is cut into.

    They are equal but for a row, and none is empty. Their number is even where the rows allow it,
    so that two threads end together; only a minibatch of half a micro-batch or less is not cut.

    Args:
        most: rows of a micro-batch.
    """
    if 2 * num_rows <= most:
        return 1
    number = -(-num_rows // most)
    return min(number + number % 2, num_rows)


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    return batch.obs, batch.actions, *batch.old, *batch.targets


def _explained_variance(batch: Batch) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant."""
    returns = batch.targets.returns
    variance = float(returns.var(correction=0))
    residual = float((returns - batch.old.values).var(correction=0))
    return 1 - residual / variance if variance else 0.0


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array
