"""The learner, which makes one update of the parameters from each full slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.base import OldPolicy, Targets
from htsrl_cli.algorithms.registry import build_algorithm
from htsrl_cli.algorithms.returns import Rollout
from htsrl_cli.checkpoints.state import State
from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.config.sections import LearnerConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.envs.squash import TANH
from htsrl_cli.errors import NonFiniteError
from htsrl_cli.learning.batch import Batch
from htsrl_cli.learning.gradient import Gradient, engine_for
from htsrl_cli.learning.lag import explained_variance, lag_metrics, ratios_of
from htsrl_cli.learning.minibatches import minibatches
from htsrl_cli.learning.sequences import Sequences
from htsrl_cli.learning.statistics import Statistics
from htsrl_cli.networks.activations import as_tensor
from htsrl_cli.networks.device import settle_on, sleep_until_done
from htsrl_cli.networks.registry import initial_policies
from htsrl_cli.ranks.group import ALONE, Group
from htsrl_cli.ranks.shards import by_shard, slot_rows
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.slot import Slot


class Learner:
    """The policies, their optimizer, and the update from θ[j] to θ[j+1].

    θ[j] is version j of the parameters, with which rollout j is collected. With K policies, policy
    k learns only from columns k, k + K, and so on. Policies share only the gradient engine and the
    optimizer, which treats every parameter separately.

    Args:
        num_updates: number of updates in the whole run, over which schedules are annealed.
        lag: policy lag in versions: 1, or 0 if each slot is used before the next one is collected;
            None if it varies.
        seed: the run's seed, which determines initial parameters and the order of rows.
        group: the ranks that train the run; this rank's slots hold the columns of its shards.
        inference_batch: see `GradientEngine`.

    Attributes:
        policies: the `ActorCritic` networks, in float32.
        memory_width: the numbers of a column's memory state; 0 if the policies have no memory.
        num_updates_done: number of updates made so far.
    """

    def __init__(
        self,
        spec: EnvSpec,
        network: NetworkConfig,
        algo: AlgoConfig,
        config: LearnerConfig,
        device: torch.device,
        num_updates: int,
        lag: int | None,
        seed: int,
        group: Group = ALONE,
        inference_batch: int = 1,
    ) -> None:
        settle_on(device)
        self._group = group
        self._num_shards = config.num_shards
        # The shards of this rank.
        own = config.num_shards // group.size
        self._own = range(group.rank * own, (group.rank + 1) * own)
        self._algo = algo
        self._algorithm = build_algorithm(algo)
        self._device = device
        self._num_updates = num_updates
        self._lag = lag
        self._seed = seed
        self.policies = initial_policies(spec, network, algo, seed).to(device)
        networks: list[Any] = list(self.policies)
        self.memory_width: int = networks[0].memory_width
        self._parameters: list[Tensor] = list(self.policies.parameters())
        # A version consists of parameters and buffers.
        self._state: list[Tensor] = list(self.policies.state_dict().values())
        # θ[j-1], at which A2C computes its gradient (HTS-RL paper, Eq. 6); θ[1] = θ[0].
        self._previous = _clones(self._state)
        self._optimizer = self._algorithm.build_optimizer(self._parameters)
        self._statistics = Statistics(self.policies, algo.gamma, group)
        engine = engine_for(device)
        self._engine = engine(
            spec, network, algo, self._algorithm, config, device, own, inference_batch
        )
        self.num_updates_done = 0

    def pin(self, slots: Sequence[Slot]) -> None:
        """Locks the slots' observations in memory until `close`, for fast copies to a GPU.

        Does nothing if the learner uses a CPU.

        Raises:
            RunError: the driver cannot lock the memory.
        """
        self._engine.pin([slot.obs for slot in slots])

    def close(self) -> None:
        """Releases the engine's threads and locked memory."""
        self._engine.close()

    def update(
        self, slot: Slot, check: Callable[[], None], activations: Sequence[Array] = ()
    ) -> dict[str, float]:
        """Makes one update, from θ[j] to θ[j+1], with the experience of a full slot.

        Args:
            slot: a full slot, collected with θ[j - lag].
            check: a function that is called before every minibatch. Any exception that it raises
                ends the update.
            activations: the slot's activations; empty unless actors keep them. See
                `Ring.activations`.

        Returns:
            Metrics by name: losses and gradient norm (means over the minibatches), the explained
            variance of the slot's values, the learning rate, and the effects of policy lag.

        Raises:
            NonFiniteError: a loss or gradient is not finite. The gradient of this minibatch has not
                been applied, but the gradients of earlier minibatches of the update have been
                applied. Continue from a checkpoint.
        """
        started_from = _clones(self._state)
        built, advantages, metrics = self._batch(slot, activations)
        batch = self._engine.hold(built)
        logged = []
        seed, number, shards = self._seed, self.num_updates_done, self._num_shards
        num_rows = advantages.shape[-1]
        for rows in minibatches(self._algorithm, batch, seed, number, shards, num_rows):
            check()
            # Under policy lag, the slot was collected with θ[j-1]. A2C computes the gradient at
            # θ[j-1], where the slot is on-policy, and applies it to θ[j].
            at_previous = self._algorithm.at_behaviour and self._lag
            self._engine.load(self._previous if at_previous else self._state)
            logged.append(self._minibatch(batch, rows, advantages))
        self._statistics.add(slot)
        self._previous = started_from
        means = {name: float(np.mean([entry[name] for entry in logged])) for name in logged[0]}
        means["learner/learning_rate"] = self._learning_rate()
        if "loss/clip_fraction" in logged[0]:
            means["lag/first_clip_fraction"] = logged[0]["loss/clip_fraction"]
        self.num_updates_done += 1
        return means | metrics

    def _minibatch(self, batch: Batch, rows: Tensor, advantages: Tensor) -> dict[str, float]:
        """Makes one optimizer step with a minibatch; returns the minibatch's metrics by name.

        Args:
            rows: row indices of the minibatch; see `minibatches`.
            advantages: those of all shards of the run; see `_batch`.
        """
        num_policies, own = len(self.policies), self._own
        chosen = advantages.gather(2, rows.expand(num_policies, -1, -1))
        weighed = torch.stack([self._algorithm.weigh(c.flatten()) for c in chosen])
        gradient = self._engine.gradient(
            batch,
            slot_rows(rows[own.start : own.stop], batch.width),
            weighed.view_as(chosen)[:, own.start : own.stop],
            rows.numel(),
            self._remaining(),
        )
        sleep_until_done(self._device)
        flat = [g for of_policy in gradient.of_policies for g in of_policy]
        losses = self._group.sum(flat, gradient.losses).flatten(0, 2)
        sums = [sum(parts) for parts in zip(*losses.cpu().tolist(), strict=True)]
        logged = {
            f"loss/{name}": total / len(self.policies)
            for name, total in zip(gradient.names, sums, strict=True)
        }
        logged["learner/grad_norm"] = self._apply(gradient, logged)
        return logged

    def _apply(self, gradient: Gradient, losses: dict[str, float]) -> float:
        """Clips each policy's gradient and steps the optimizer.

        Returns:
            The norm of a policy's gradient before clipping, averaged over the policies.

        Raises:
            NonFiniteError: a loss or gradient is not finite.
        """
        norms = [
            torch.stack([torch.linalg.vector_norm(g) for g in of_policy])
            for of_policy in gradient.of_policies
        ]
        totals: list[float] = (
            torch.stack([torch.linalg.vector_norm(of_policy) for of_policy in norms]).cpu().tolist()
        )
        if not np.isfinite([*totals, *losses.values()]).all():
            names = [name for name, _ in self.policies.named_parameters()]
            by_name = dict(zip(names, torch.cat(norms).tolist(), strict=True))
            raise NonFiniteError(f"update {self.num_updates_done}: {_non_finite(losses, by_name)}")
        for of_policy, norm in zip(gradient.of_policies, totals, strict=True):
            torch._foreach_mul_(of_policy, min(1.0, self._algo.max_grad_norm / (norm + 1e-6)))
        flat = [g for of_policy in gradient.of_policies for g in of_policy]
        for parameter, g in zip(self._parameters, flat, strict=True):
            parameter.grad = g
        self._optimizer.param_groups[0]["lr"] = self._learning_rate()
        self._optimizer.step()
        return sum(totals) / len(totals)

    def _batch(
        self, slot: Slot, activations: Sequence[Array]
    ) -> tuple[Batch, Tensor, dict[str, float]]:
        """Returns the batch of a slot.

        Also returns the advantages of all shards of the run, float32 [K, shards, rows]; and metrics
        by name, of all shards: the explained variance and, if the slot is reevaluated, those of its
        importance weights.
        """
        tensor = partial(_on_device, device=self._device)
        obs, actions = tensor(slot.obs).flatten(0, 1), tensor(slot.actions).flatten(0, 1)
        masks = None if slot.masks is None else tensor(slot.masks[:-1]).flatten(0, 1)
        values, behaviour = torch.from_numpy(slot.values), torch.from_numpy(slot.log_probs)
        sequences = Sequences.of(slot, self._device)
        # Without lag, the policies are the same, and their ratios are exactly 1.
        ratios = torch.ones_like(behaviour)
        log_ratios = torch.zeros_like(behaviour)
        kept: list[Tensor] = []
        old = OldPolicy(tensor(slot.log_probs).flatten(), tensor(slot.values).flatten())
        is_reevaluated = self._lag != 0 and self._algorithm.reevaluates
        if is_reevaluated:
            self._engine.load(self._state)
            old, kept = self._engine.evaluate(obs, actions, masks, sequences)
            values = old.values.cpu().view(values.shape)
            log_ratios = old.log_probs.cpu().view(ratios.shape) - behaviour
            ratios = ratios_of(log_ratios)
        # Targets are computed on the CPU, because they take hundreds of tiny operations.
        rollout = Rollout(
            self._statistics.normalized(torch.from_numpy(slot.rewards)),
            torch.from_numpy(slot.terminated),
            torch.from_numpy(slot.truncated),
            values,
            torch.from_numpy(slot.final_values),
            ratios,
        )
        found = self._algorithm.targets(rollout)
        targets = Targets(*(array.flatten().to(self._device) for array in found))
        whole = torch.stack([found.advantages, found.returns, values[:-1], log_ratios])
        advantages, returns, estimates, log_ratios = self._group.columns(whole)
        metrics = {"loss/explained_variance": explained_variance(returns, estimates)}
        if is_reevaluated:
            metrics |= lag_metrics(log_ratios, self._algorithm.max_weight)
        num_rows = len(actions)
        batch = Batch(
            obs[:num_rows],
            actions,
            masks,
            tensor(slot.noise).flatten(0, 1) if self._algo.squash == TANH else None,
            old._replace(values=old.values[:num_rows]),
            targets,
            kept or [as_tensor(array).flatten(0, 1) for array in activations],
            slot.rewards.shape[1] // (len(self._own) * len(self.policies)),
            sequences,
        )
        by_policy = by_shard(advantages, len(self.policies), self._num_shards)
        return batch, by_policy.to(self._device), metrics

    def _remaining(self) -> float:
        return 1.0 - self.num_updates_done / self._num_updates

    def _learning_rate(self) -> float:
        return self._algo.learning_rate_at(self._remaining())

    # The arrays that the methods below return may share memory with the learner, so the next update
    # may overwrite them.

    def parameters(self) -> dict[str, Array]:
        """Returns the arrays of θ[j], including buffers, by name."""
        return {name: _numpy(tensor) for name, tensor in self.policies.state_dict().items()}

    @torch.no_grad()
    def write_parameters(self, arrays: Mapping[str, Array]) -> None:
        """Copies θ[j], including buffers, into the arrays of the same names."""
        for name, tensor in self.policies.state_dict().items():
            torch.from_numpy(arrays[name]).copy_(tensor)

    def previous_parameters(self) -> dict[str, Array]:
        """Returns the arrays of θ[j-1], including buffers, by name."""
        names = self.policies.state_dict()
        return {name: _numpy(t) for name, t in zip(names, self._previous, strict=True)}

    def optimizer_state(self) -> dict[str, Array]:
        """Returns the optimizer's arrays, named `<quantity>/<parameter>`.

        The quantities are the keys of the torch optimizer's state, for example `step`.
        """
        return {
            f"{key}/{name}": _numpy(value)
            for name, parameter in self.policies.named_parameters()
            for key, value in self._optimizer.state[parameter].items()
        }

    def state(self) -> State:
        """Returns the state that an exact resume needs.

        The arrays `params/<name>` hold θ[j], the arrays `previous/<name>` hold θ[j-1], and the
        arrays `optimizer/<quantity>/<name>` hold the optimizer's state. `Statistics` adds its own.
        The value `num_updates` is the number of updates made.
        """
        parts = {
            "params": self.parameters(),
            "optimizer": self.optimizer_state(),
            "previous": self.previous_parameters(),
        }
        arrays = {f"{part}/{n}": array for part, of in parts.items() for n, array in of.items()}
        arrays |= self._statistics.state().arrays
        return State(arrays, {"num_updates": self.num_updates_done})

    def load_state(self, state: State) -> None:
        """Restores a state that `state` returned."""
        self.num_updates_done = state.values["num_updates"]
        self._statistics.load_state(state)
        tensors = self.policies.state_dict()
        with torch.no_grad():
            for (name, tensor), previous in zip(tensors.items(), self._previous, strict=True):
                tensor.copy_(_tensor(state.arrays[f"params/{name}"]))
                previous.copy_(_tensor(state.arrays[f"previous/{name}"]))
        for key, array in state.arrays.items():
            if key.startswith("optimizer/"):
                _, quantity, name = key.split("/")
                parameter = self.policies.get_parameter(name)
                self._optimizer.state[parameter][quantity] = _like(parameter, _tensor(array))


def _non_finite(losses: Mapping[str, float], norms: Mapping[str, float]) -> str:
    """Returns what to say of losses and of parameters' gradients that are not finite."""
    gradients = {f"gradient of {name}": norm for name, norm in norms.items()}
    bad = [name for name, value in {**losses, **gradients}.items() if not np.isfinite(value)]
    return (
        f"not finite: {', '.join(bad[:4])}; the gradient was not applied; lower algo.learning_rate "
        "or set learner.precision=fp32"
    )


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Returns a value of the optimizer's state on the device of its parameter.

    The optimizer creates its state in the memory layout of the parameter, so the restored state
    gets this layout, too.
    """
    moved = value.to(parameter.device)
    return torch.empty_like(parameter).copy_(moved) if value.ndim else moved


def _on_device(array: Array, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array.copy())


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array
