"""The learner: makes the next parameters from a full slot.

A minibatch is cut into micro-batches of constant size. Each is computed on a single thread by a
small pool, and their gradients are summed in order: the result does not depend on the number of
threads, and the cores are better used than by threads inside an operation.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms import Behaviour, Prediction, Targets, build_algorithm
from htsrl_cli.config import AlgoConfig, LearnerConfig
from htsrl_cli.envs import EnvSpec
from htsrl_cli.errors import NonFiniteError
from htsrl_cli.losses import Rollout
from htsrl_cli.memory import Array
from htsrl_cli.policy import build_policy, initialize, log_prob_entropy
from htsrl_cli.storage import Slot


class Batch(NamedTuple):
    """A slot as N = T * B rows, time-major: obs [N, *obs_shape], actions [N, D], the rest [N]."""

    obs: Tensor
    actions: Tensor
    then: Behaviour
    targets: Targets


class Learner:
    """Policy, optimizer, and the update from one version of the parameters to the next.

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
        self._algorithm = build_algorithm(algo)
        self._max_grad_norm = algo.max_grad_norm
        self._micro_batch = config.micro_batch
        self._device = device
        self._num_updates = num_updates
        self._lag = lag
        self._seed = seed
        self._actions = spec.actions
        self.policy = build_policy(spec, algo, "fp32", torch.device("cpu"))
        initialize(self.policy, seed)
        self.policy.to(device)
        self._parameters: list[Tensor] = list(self.policy.parameters())
        # The policy that is differentiated: in the learner's precision, shared by all threads.
        self._compute = build_policy(spec, algo, config.precision, device)
        self._compute_parameters: list[Tensor] = list(self._compute.parameters())
        # θ[j-1], where the gradient of A2C is taken (paper, Eq. 6); θ[1] = θ[0].
        self._previous = _clones(self._parameters)
        self._optimizer = self._algorithm.build_optimizer(self._parameters)
        self.num_updates_done = 0
        self._pool = ThreadPoolExecutor(config.num_threads, "learner")

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def update(self, slot: Slot, check: Callable[[], None]) -> dict[str, float]:
        """Learns from a full slot: θ[j] becomes θ[j+1]. Returns what to log.

        Args:
            slot: filled with θ[j - lag].
            check: called before every minibatch; raises to give up.

        Raises:
            NonFiniteError: a loss or gradient is not finite. It has not been applied, but the
                minibatches before it have: go on from a checkpoint.
        """
        started_from = _clones(self._parameters)
        batch = self._batch(slot)
        logged = []
        num_rows = len(batch.targets.returns)
        for rows in self._algorithm.minibatches(self._seed, self.num_updates_done, num_rows):
            check()
            # A2C: the data are on-policy for the parameters that collected them. There the
            # gradient is taken; it is applied to θ[j].
            at_previous = self._algorithm.at_behaviour and self._lag
            source = self._previous if at_previous else self._parameters
            with torch.no_grad():
                torch._foreach_copy_(self._compute_parameters, source)
            logged.append(self._minibatch(batch, torch.from_numpy(rows).to(self._device)))
        self._previous = started_from
        means = {name: float(np.mean([entry[name] for entry in logged])) for name in logged[0]}
        means["loss/explained_variance"] = _explained_variance(batch)
        means["learner/learning_rate"] = self._learning_rate()
        self.num_updates_done += 1
        return means

    def _minibatch(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """One optimizer step on `rows` of the batch."""
        advantages = self._algorithm.weigh(batch.targets.advantages[rows])

        num_rows = len(rows)

        def micro_batch(rows: Tensor, advantages: Tensor) -> tuple[list[Tensor], dict[str, float]]:
            loss, parts = self._loss(batch, rows, advantages, num_rows)
            gradient = torch.autograd.grad(loss, self._compute_parameters)
            return [g.float() for g in gradient], {n: part.item() for n, part in parts.items()}

        pieces = (torch.split(whole, self._micro_batch) for whole in (rows, advantages))
        results = self._pool.map(micro_batch, *pieces)
        gradient, losses = next(results)
        for more_gradient, more_losses in results:
            torch._foreach_add_(gradient, more_gradient)
            losses = {name: loss + more_losses[name] for name, loss in losses.items()}
        logged = {f"loss/{name}": loss for name, loss in losses.items()}
        logged["learner/grad_norm"] = self._apply(gradient, logged)
        return logged

    def _loss(
        self, batch: Batch, rows: Tensor, advantages: Tensor, num_rows: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        params, values = self._compute(batch.obs.index_select(0, rows))
        log_probs, entropy = log_prob_entropy(self._actions, params, batch.actions[rows])
        return self._algorithm.loss(
            Prediction(log_probs, entropy, values),
            Behaviour(*(array[rows] for array in batch.then)),
            Targets(advantages, batch.targets.returns[rows]),
            num_rows,
            self._remaining(),
        )

    def _apply(self, gradient: list[Tensor], losses: dict[str, float]) -> float:
        """Clips the gradient and steps the optimizer; returns the norm before clipping."""
        norms = torch.stack([torch.linalg.vector_norm(g) for g in gradient])
        norm = float(torch.linalg.vector_norm(norms))
        if not np.isfinite([norm, *losses.values()]).all():
            raise NonFiniteError(self._name_non_finite(losses, norms))
        torch._foreach_mul_(gradient, min(1.0, self._max_grad_norm / (norm + 1e-6)))
        for parameter, g in zip(self._parameters, gradient, strict=True):
            parameter.grad = g
        self._optimizer.param_groups[0]["lr"] = self._learning_rate()
        self._optimizer.step()
        return norm

    def _name_non_finite(self, losses: dict[str, float], norms: Tensor) -> str:
        bad = [name for name, value in losses.items() if not np.isfinite(value)]
        names = [f"gradient of {name}" for name, _ in self.policy.named_parameters()]
        bad += [n for n, norm in zip(names, norms.tolist(), strict=True) if not np.isfinite(norm)]
        return (
            f"update {self.num_updates_done}: not finite: {', '.join(bad[:4])}; the run stops "
            "before applying it; lower algo.learning_rate or set learner.precision=fp32"
        )

    def _batch(self, slot: Slot) -> Batch:
        def tensor(array: Array) -> Tensor:
            return torch.from_numpy(array).to(self._device)

        rollout = Rollout(
            tensor(slot.rewards),
            tensor(slot.terminated),
            tensor(slot.truncated),
            tensor(slot.values),
            tensor(slot.final_values),
        )
        targets = self._algorithm.targets(rollout)
        return Batch(
            tensor(slot.obs[:-1]).flatten(0, 1),
            tensor(slot.actions).flatten(0, 1),
            Behaviour(tensor(slot.log_probs).flatten(), rollout.values[:-1].flatten()),
            Targets(*(array.flatten() for array in targets)),
        )

    def _remaining(self) -> float:
        return 1.0 - self.num_updates_done / self._num_updates

    def _learning_rate(self) -> float:
        return self._algorithm.learning_rate(self._remaining())

    def optimizer_state(self) -> dict[str, Array]:
        """The optimizer's arrays by name, `<quantity>/<parameter>`."""
        return {
            f"{key}/{name}": _numpy(value)
            for name, parameter in self.policy.named_parameters()
            for key, value in self._optimizer.state[parameter].items()
        }

    def parameters(self) -> dict[str, Array]:
        """θ[j] by name."""
        return {name: _numpy(p) for name, p in self.policy.named_parameters()}

    def state(self) -> dict[str, Array]:
        """The arrays that going on exactly needs: θ[j], θ[j-1] and the optimizer's state."""
        return {
            **{f"params/{name}": array for name, array in self.parameters().items()},
            **{f"optimizer/{name}": array for name, array in self.optimizer_state().items()},
            **{
                f"previous/{name}": _numpy(array)
                for (name, _), array in zip(
                    self.policy.named_parameters(), self._previous, strict=True
                )
            },
        }

    def load_state(self, arrays: dict[str, Array], num_updates_done: int) -> None:
        """Restores `state`; other arrays are ignored."""
        self.num_updates_done = num_updates_done
        parameters = dict(self.policy.named_parameters())
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


def _explained_variance(batch: Batch) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant."""
    returns = batch.targets.returns
    variance = float(returns.var(correction=0))
    residual = float((returns - batch.then.values).var(correction=0))
    return 1 - residual / variance if variance else 0.0


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().contiguous().numpy().copy()
