"""One-thread rates of the three kinds of work in training, and the machine's bound.

The kinds of work are stepping, inference, and differentiation with optimizer steps. The bound is
the highest possible training rate, in env steps per second: at this rate, the busiest device would
be busy with this work all the time. A device is a GPU, or all cores together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.registry import build_algorithm
from htsrl_cli.bench.env_rates import env_rate, rate
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.rules import LINEAR_KERNELS
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.envs.registry import make_env
from htsrl_cli.learning.micro_batches import num_micro_batches
from htsrl_cli.machine import num_cores
from htsrl_cli.networks.activations import CachedLayers, CachingLayers, relu_layer
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.device import record, resolve_device, set_up_torch
from htsrl_cli.networks.distributions import log_prob_entropy
from htsrl_cli.networks.nature_cnn.network import NatureCnn
from htsrl_cli.networks.registry import build_policy
from htsrl_cli.sampling.inference import Inference, InferenceSetup, activations_to_keep


@dataclass(frozen=True)
class OneThread:
    """The rates of one thread, and the amount of each kind of work per env step.

    Attributes:
        env: env steps per second.
        inference: rows per second of forward passes with full batches.
        train: rows per second of forward and backward passes, including optimizer steps. If actors
            keep activations, only backward passes are computed.
        players: number of rows that one env step adds to a slot.
        epochs: number of passes over a slot in one update.
        devices: torch's names of the devices for env steps, inference and training, in this order.
        kernel: name of the fastest kernel for the network's linear layer: the kernel with the
            smallest sum of `cost_ms`. The rates are measured with this kernel. Empty if the choice
            of kernel makes no difference.
        excess_ms: sum of `cost_ms` with the configured kernel, minus this sum with `kernel`.
    """

    env: float
    inference: float
    train: float
    players: int
    epochs: int
    devices: tuple[str, str, str]
    kernel: str = ""
    excess_ms: float = 0.0

    @classmethod
    def measure(cls, config: TrainConfig, seconds: float) -> OneThread:
        """Measures each kind of work that a run of `config` does, for at least `seconds` each."""
        set_up_torch()
        actors = resolve_device("actors.device", config.actors.device)
        learner = resolve_device("learner.device", config.learner.device)
        with closing(make_env(config.env, 0)) as env:
            spec, stepped = env.env_spec, env_rate([env], seconds)
        measured = {
            kernel: cls(
                stepped,
                _inference_rate(variant, spec, seconds),
                _train_rate(variant, spec, learner, seconds),
                spec.num_players,
                config.algo.num_epochs,
                ("cpu", str(actors), str(learner)),
                kernel,
            )
            for kernel, variant in _by_kernel(config, spec).items()
        }
        fastest = min(measured.values(), key=lambda rates: sum(rates.cost_ms))
        own = measured[getattr(config.network, "linear_kernel", "") if fastest.kernel else ""]
        return replace(fastest, excess_ms=sum(own.cost_ms) - sum(fastest.cost_ms))

    @property
    def cost_ms(self) -> tuple[float, float, float]:
        """Milliseconds that one thread needs per env step: for stepping, inference and training."""
        rows = 1000 * self.players
        return 1000 / self.env, rows / self.inference, rows * self.epochs / self.train

    @property
    def bound(self) -> float:
        """Env steps per second if the busiest device (all cores, or a GPU) is never idle."""
        total: dict[str, float] = {}
        for device, cost_ms in zip(self.devices, self.cost_ms, strict=True):
            total[device] = total.get(device, 0.0) + cost_ms
        total["cpu"] /= num_cores()
        return 1000 / max(total.values())


def _by_kernel(config: TrainConfig, spec: EnvSpec) -> dict[str, TrainConfig]:
    """Returns a variant of the configuration for each linear-layer kernel, by the kernel's name.

    If the choice of kernel makes no difference, the only entry is the unchanged configuration,
    under the name "".
    """
    cpu = torch.device("cpu")
    computed_as_chosen = any(
        resolve_device(key, role.device) == cpu and role.precision == "fp32"
        for key, role in (("actors.device", config.actors), ("learner.device", config.learner))
    )
    trunk = build_policy(spec, config.network, "fp32", cpu).trunk
    if not (computed_as_chosen and isinstance(trunk, NatureCnn)):
        return {"": config}
    network: Any = config.network
    return {
        kernel: replace(config, network=replace(network, linear_kernel=kernel))
        for kernel in LINEAR_KERNELS
    }


def _inference_rate(config: TrainConfig, spec: EnvSpec, seconds: float) -> float:
    """Measures the rows per second of an actor's forward passes, including sampling."""
    setup = InferenceSetup.of(spec, config)
    inference = Inference(setup)

    def forward() -> int:
        inference.run(0)
        return setup.batch

    return rate(forward, seconds)


def _train_rate(config: TrainConfig, spec: EnvSpec, device: torch.device, seconds: float) -> float:
    """Measures the rows per second of the learner's gradient computation and optimizer steps.

    One optimizer step follows the micro-batches of each minibatch, as in a run. Other work of an
    update (targets, gathering rows, clipping) is left out, because the result should be an upper
    bound.
    """
    algorithm = build_algorithm(config.algo)
    number, rows, length = _micro_batches(config)
    policy = build_policy(spec, config.network, config.learner.precision, device)
    kept: list[Tensor] = list(build_policy(spec, config.network, "fp32", device).parameters())
    optimizer = algorithm.build_optimizer(kept)
    parameters: list[Tensor] = list(policy.parameters())
    actions = torch.zeros(rows, spec.actions.num_dims, dtype=torch.int64, device=device)
    is_cached = bool(activations_to_keep(spec, config))
    forward = _forward(policy, _random_obs(spec, rows).to(device), length, is_cached)

    def gradient() -> list[Tensor]:
        params, values = forward()
        log_probs, entropy = log_prob_entropy(spec.actions, params, actions)
        loss = (log_probs + entropy + values).mean()
        return [g.float() for g in torch.autograd.grad(loss, parameters)]

    def whole_gradient() -> list[Tensor]:
        total = gradient()
        for _ in range(number - 1):
            torch._foreach_add_(total, gradient())
        return total

    compute = whole_gradient
    if device.type == "cuda":
        # Records a CUDA graph, as `GpuEngine` does.
        graph, recorded = record(
            whole_gradient,
            torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
        )

        def compute() -> list[Tensor]:
            graph.replay()
            return recorded

    def optimizer_step() -> int:
        total = compute()
        for parameter, g in zip(kept, total, strict=True):
            parameter.grad = g
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return number * rows

    return rate(optimizer_step, seconds)


def _micro_batches(config: TrainConfig) -> tuple[int, int, int]:
    """Returns the number of a minibatch's micro-batches, and their number of rows.

    Also returns the number of rows that belong together: 1, or those of a column with a memory.
    """
    plan = RunPlan.of(config)
    length = 1 if config.network.memory == "none" else plan.sync_interval
    made = build_algorithm(config.algo).minibatches(
        config.seed, 0, plan.rows_per_policy // length, 0
    )
    together = len(next(iter(made)))
    number = min(num_micro_batches(together * length, config.learner.micro_batch), together)
    return number, together // number * length, length


def _forward(
    policy: ActorCritic, obs: Tensor, length: int, is_cached: bool
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Returns the learner's forward pass over a micro-batch.

    Args:
        length: see `_micro_batches`.
        is_cached: True if actors keep activations, so that nothing is computed.
    """
    if policy.memory is not None:
        width = len(obs) // length
        states = torch.zeros(width, policy.memory_width, device=obs.device)
        starts = torch.zeros(length, width, dtype=torch.bool, device=obs.device)
        return lambda: policy.unroll(obs, states, starts)
    caching = CachingLayers()
    if is_cached:
        with torch.no_grad():
            policy(obs, caching)
    return lambda: policy(obs, CachedLayers(caching.outputs) if caching.outputs else relu_layer)


def _random_obs(spec: EnvSpec, rows: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (rows, *spec.obs_shape)).astype(spec.obs_dtype))
