"""Slow float64 references for the learner, which compute its updates in loops.

They use nothing of the learner: networks are matrix products, targets follow their definitions,
clipping and optimizers are written out. The module also makes the random slots for the tests.

Shapes: T env steps, B columns, N rows of a batch, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.a2c.config import A2cConfig
from htsrl_cli.algorithms.impala.config import ImpalaConfig
from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.algorithms.rmsprop import RmspropConfig
from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.seeding import minibatch_orders
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.slot import Slot, slot_fields
from tests import sections
from tests.unit.recurrent_references import Theta, recurrent_network

T, B, OBS, NUM_ACTIONS = 8, 6, 5, 3
SPEC = EnvSpec((OBS,), "float32", ActionSpec("categorical", (NUM_ACTIONS,)))
IMAGES = EnvSpec((36, 36, 2), "uint8", ActionSpec("categorical", (NUM_ACTIONS,)))
# Perceptrons with one small layer for vectors; a convolutional network for images.
NETWORK = sections.network(hidden_sizes=(7,))
A2C = sections.a2c(learning_rate=1e-2, max_grad_norm=0.05, rmsprop_eps=1e-3)
PPO = sections.ppo(
    learning_rate=1e-2,
    anneal_clip_coef=True,
    clip_coef=0.2,
    gamma=0.9,
    gae_lambda=0.8,
    update_epochs=3,
    num_minibatches=4,
    correction="proximal",
    max_grad_norm=0.05,
)
# Limits of weights that some ratios of random slots exceed, and others do not.
IMPALA = sections.impala(
    learning_rate=1e-2,
    gamma=0.9,
    gae_lambda=0.8,
    max_weight=1.3,
    vtrace_rho=1.2,
    vtrace_c=1.1,
    sum_losses=False,
    entropy_coef=0.01,
    value_coef=0.5,
    max_grad_norm=1.0,
    rmsprop_eps=1e-3,
)
SEED = 3


def make_slot(spec: EnvSpec, seed: int, memory_width: int = 0) -> Slot:
    """Returns a slot of random experience with every kind of end.

    Log-probabilities, values and memory states are random, too.
    """
    rng = np.random.default_rng(seed)
    layout = {field.name: field.layout(T, B) for field in slot_fields(spec, memory_width)}
    arrays: dict[str, Array] = {n: np.zeros(shape, dtype) for n, (shape, dtype) in layout.items()}
    if spec.obs_dtype == "uint8":
        arrays["obs"][:] = rng.integers(0, 256, arrays["obs"].shape)
    else:
        arrays["obs"][:] = rng.standard_normal(arrays["obs"].shape)
    arrays["actions"][:] = rng.integers(0, NUM_ACTIONS, (T, B, 1))
    arrays["rewards"][:] = 2 * rng.standard_normal((T, B))
    arrays["log_probs"][:] = np.log(rng.uniform(0.2, 0.5, (T, B)))
    arrays["values"][:] = rng.standard_normal((T + 1, B))
    arrays["terminated"][:] = rng.random((T, B)) < 0.15
    arrays["truncated"][:] = (rng.random((T, B)) < 0.15) & ~arrays["terminated"]
    arrays["final_values"][:] = np.where(arrays["truncated"], rng.standard_normal((T, B)), 0)
    if memory_width:
        arrays["memories"][:] = rng.standard_normal((1, B, memory_width))
    assert arrays["terminated"].any()
    assert arrays["truncated"].any()
    return Slot(arrays)


def network(theta: Theta, obs: Array) -> tuple[Tensor, Tensor]:
    """Returns all actions' log-probabilities [N, A] and the values [N] of two tanh perceptrons."""
    x = torch.tensor(obs, dtype=torch.float64)

    def perceptron(trunk: str, head: str) -> Tensor:
        inner = x @ theta[f"{trunk}.layers.0.weight"].T + theta[f"{trunk}.layers.0.bias"]
        return torch.tanh(inner) @ theta[f"{head}.weight"].T + theta[f"{head}.bias"]

    logits = perceptron("trunk", "policy_head")
    log_p = logits - torch.log(torch.exp(logits).sum(dim=1, keepdim=True))
    return log_p, perceptron("value_trunk", "value_head")[:, 0]


def outputs(theta: Theta, slot: Slot) -> tuple[Tensor, Tensor]:
    """Returns all actions' log-probabilities [T + 1, B, A] and the values [T + 1, B] of a slot."""
    if slot.memories is not None:
        return recurrent_network(theta, slot)
    log_p, values = network(theta, slot.obs.reshape(-1, OBS))
    return log_p.view(T + 1, B, -1), values.view(T + 1, B)


def gradient(theta: Theta, loss: Callable[[Theta], Tensor]) -> Theta:
    leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
    loss(leaves).backward()  # type: ignore[no-untyped-call]
    gradients = {}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        gradients[name] = leaf.grad
    return gradients


def clipped(gradients: Theta, max_norm: float) -> Theta:
    norm = sum(float((g**2).sum()) for g in gradients.values()) ** 0.5
    assert norm > max_norm, "clipping has to be active for the test to be one of clipping"
    return {name: g * max_norm / norm for name, g in gradients.items()}


def row_by_row(
    slot: Slot, targets: Callable[[int, int], tuple[float, float]]
) -> tuple[Array, Array]:
    """Returns advantages and returns, [T, B], from the pairs that `targets(t, c)` returns."""
    both = np.array([[targets(t, c) for c in range(B)] for t in range(T)])
    return both[..., 0], both[..., 1]


def follow(slot: Slot, t: int, c: int) -> float:
    """Returns the behavior policy's value of what follows step t; 0 after a termination."""
    if slot.terminated[t, c]:
        return 0.0
    if slot.truncated[t, c]:
        return float(slot.final_values[t, c])
    return float(slot.values[t + 1, c])


def ended(slot: Slot, t: int, c: int) -> bool:
    return bool(slot.terminated[t, c] or slot.truncated[t, c])


class Rmsprop:
    """RMSprop, written out; `theta` holds the parameters."""

    def __init__(self, config: RmspropConfig, theta: Theta) -> None:
        self.alpha, self.eps = config.rmsprop_alpha, config.rmsprop_eps
        self.theta = theta
        self.squares = {name: torch.zeros_like(p) for name, p in theta.items()}

    def step(self, gradients: Theta, rate: float) -> None:
        for name, g in gradients.items():
            self.squares[name] = self.alpha * self.squares[name] + (1 - self.alpha) * g * g
            step = g / (self.squares[name].sqrt() + self.eps)
            self.theta[name] = self.theta[name] - rate * step


class A2cReference(Rmsprop):
    """A2C by Eq. 6: takes the gradient at `at`, which acted, and applies it to θ[j] by RMSprop."""

    def __init__(self, config: A2cConfig, theta: Theta) -> None:
        super().__init__(config, theta)
        self.config = config

    def targets(self, slot: Slot) -> tuple[Array, Array]:
        def cell(t: int, c: int) -> tuple[float, float]:
            total, discount, k = 0.0, 1.0, t
            while True:
                total += discount * float(slot.rewards[k, c])
                discount *= self.config.gamma
                if k == T - 1 or ended(slot, k, c):
                    total += discount * follow(slot, k, c)
                    return total - float(slot.values[t, c]), total
                k += 1

        return row_by_row(slot, cell)

    def update(self, slot: Slot, at: Theta) -> None:
        advantages, returns = self.targets(slot)

        def loss(theta: Theta) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            every_log_p, every_value = outputs(theta, slot)
            for t in range(T):
                log_p, values = every_log_p[t], every_value[t]
                for c in range(B):
                    entropy = -(log_p[c].exp() * log_p[c]).sum()
                    total = total - log_p[c, slot.actions[t, c, 0]] * advantages[t, c]
                    total = total + self.config.value_coef * (returns[t, c] - values[c]) ** 2
                    total = total - self.config.entropy_coef * entropy
            return total / (T * B)

        config = self.config
        self.step(clipped(gradient(at, loss), config.max_grad_norm), config.learning_rate)


class Limits:
    """The limits of importance ratios; counts by key how many ratios exceeded them."""

    def __init__(self, config: PpoConfig | ImpalaConfig) -> None:
        self._config = config
        self.num_limited = {"max_weight": 0, "vtrace_rho": 0, "vtrace_c": 0}

    def __call__(self, name: str, ratio: float) -> float:
        """Returns an importance ratio, or the limit in the key `name` if that is less."""
        limit: float = getattr(self._config, name)
        self.num_limited[name] += ratio > limit
        return min(ratio, limit)


def summed_targets(
    slot: Slot,
    ratios: Array,
    config: PpoConfig | ImpalaConfig,
    limits: Limits,
    is_vtrace: bool = True,
) -> tuple[Array, Array]:
    """Returns V-trace's advantages and returns as sums over the rest of the episode.

    Without V-trace, all its weights are 1.
    """

    def delta(t: int, c: int) -> float:
        change = config.gamma * follow(slot, t, c) - float(slot.values[t, c])
        return float(slot.rewards[t, c]) + change

    def cell(t: int, c: int) -> tuple[float, float]:
        advantage = correction = 0.0
        passed = 1.0  # product of the weights c from step t to the step before k
        for k in range(t, T):
            weight = limits("vtrace_rho", ratios[k, c]) if is_vtrace else 1.0
            term = (config.gamma * config.gae_lambda) ** (k - t) * delta(k, c)
            correction += passed * weight * term
            # The advantage has no weights of its own action.
            own = limits("vtrace_c", ratios[t, c]) if is_vtrace else 1.0
            advantage += term if k == t else passed / own * weight * term
            passed *= limits("vtrace_c", ratios[k, c]) if is_vtrace else 1.0
            if ended(slot, k, c):
                break
        return advantage, correction + float(slot.values[t, c])

    return row_by_row(slot, cell)


class PpoReference:
    """PPO: the clipped objective in epochs of shuffled minibatches, applied by Adam.

    Unless `correction` is `none`, the slot first gets the log-probabilities and values of the
    policy from which the update starts.
    """

    def __init__(
        self, config: PpoConfig, theta: Theta, num_updates: int, num_shards: int = 1
    ) -> None:
        self.config = config
        self.theta = theta
        self.num_updates = num_updates
        self.num_shards = num_shards
        self.first = {name: torch.zeros_like(p) for name, p in theta.items()}
        self.second = {name: torch.zeros_like(p) for name, p in theta.items()}
        self.num_steps = 0
        self.num_clipped = 0
        self.limits = Limits(config)
        self.is_vtrace = config.correction == "vtrace"

    def targets(self, slot: Slot, ratios: Array) -> tuple[Array, Array]:
        """Returns advantages and returns as sums over the rest of the episode, or by V-trace."""
        return summed_targets(slot, ratios, self.config, self.limits, self.is_vtrace)

    def update(self, slot: Slot, number: int) -> None:
        config = self.config
        ratios = np.ones((T, B))
        if config.correction != "none":
            before = slot
            slot = reevaluated(slot, self.theta)
            ratios = np.exp(slot.log_probs - before.log_probs.astype(np.float64))
        remaining = 1 - number / self.num_updates
        rate = config.learning_rate * (remaining if config.anneal_learning_rate else 1.0)
        clip = config.clip_coef * (remaining if config.anneal_clip_coef else 1.0)
        advantages, returns = self.targets(slot, ratios)
        is_weighted = config.correction in ("decoupled", "vtrace")
        weights = np.ones((T, B))
        for cell in np.ndindex(T, B) if is_weighted else ():
            weights[cell] = self.limits("max_weight", float(ratios[cell]))
        for cells in self.minibatches(number, slot):
            chosen = np.array([advantages[cell] for cell in cells])
            chosen = (chosen - chosen.mean()) / (chosen.std(ddof=1) + 1e-8)
            loss = partial(
                self.loss,
                slot=slot,
                cells=cells,
                advantages=chosen,
                returns=returns,
                weights=weights,
                clip=clip,
            )
            self.step(loss, rate)

    def minibatches(self, number: int, slot: Slot) -> Iterator[list[tuple[int, int]]]:
        """Yields the cells of each minibatch of an update, shard by shard.

        With a memory, a minibatch consists of whole columns.
        """
        config, width = self.config, B // self.num_shards
        whole = slot.memories is not None
        orders = [
            minibatch_orders(SEED, number, config.update_epochs, width * (1 if whole else T), shard)
            for shard in range(self.num_shards)
        ]
        for epoch in range(config.update_epochs):
            parts = [np.split(order[epoch], config.num_minibatches) for order in orders]
            for k in range(config.num_minibatches):
                yield [
                    (int(row) // width + t, shard * width + int(row) % width)
                    for shard, of_shard in enumerate(parts)
                    for row in of_shard[k]
                    for t in range(T if whole else 1)
                ]

    def loss(
        self,
        theta: Theta,
        slot: Slot,
        cells: list[tuple[int, int]],
        advantages: Array,
        returns: Array,
        weights: Array,
        clip: float,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        every_log_p, every_value = outputs(theta, slot)
        for (t, c), advantage in zip(cells, advantages, strict=True):
            log_p, values = every_log_p[t, c], every_value[t, c]
            ratio = torch.exp(log_p[slot.actions[t, c, 0]] - float(slot.log_probs[t, c]))
            bounded = min(max(float(ratio.detach()), 1 - clip), 1 + clip)
            self.num_clipped += bounded != float(ratio.detach())
            surrogate = ratio * advantage
            if bounded * advantage < float(surrogate.detach()):
                surrogate = torch.tensor(bounded * advantage, dtype=torch.float64)
            old, target = float(slot.values[t, c]), returns[t, c]
            near = old + (values - old).clamp(-clip, clip)
            error = torch.maximum((values - target) ** 2, (near - target) ** 2)
            entropy = -(log_p.exp() * log_p).sum()
            total = total - weights[t, c] * surrogate + self.config.value_coef * 0.5 * error
            total = total - self.config.entropy_coef * entropy
        return total / len(cells)

    def step(self, loss: Callable[[Theta], Tensor], rate: float) -> None:
        self.num_steps += 1
        for name, g in clipped(gradient(self.theta, loss), self.config.max_grad_norm).items():
            self.first[name] = 0.9 * self.first[name] + 0.1 * g
            self.second[name] = 0.999 * self.second[name] + 0.001 * g * g
            mean = self.first[name] / (1 - 0.9**self.num_steps)
            square = self.second[name] / (1 - 0.999**self.num_steps)
            self.theta[name] = self.theta[name] - rate * mean / (
                square.sqrt() + self.config.adam_eps
            )


class ImpalaReference(Rmsprop):
    """IMPALA: policy gradient with V-trace, at the newest parameters, applied by RMSprop."""

    def __init__(self, config: ImpalaConfig, theta: Theta, num_updates: int) -> None:
        super().__init__(config, theta)
        self.config = config
        self.num_updates = num_updates
        self.num_clipped = 0
        self.limits = Limits(config)

    def update(self, slot: Slot, number: int) -> None:
        config = self.config
        now = reevaluated(slot, self.theta)
        ratios = np.exp(now.log_probs - slot.log_probs.astype(np.float64))
        advantages, returns = summed_targets(now, ratios, config, self.limits)

        def loss(theta: Theta) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            every_log_p, every_value = outputs(theta, slot)
            for t, c in np.ndindex(T, B):
                log_p, values = every_log_p[t, c], every_value[t, c]
                weight = self.limits("max_weight", float(ratios[t, c]))
                total = total - weight * float(advantages[t, c]) * log_p[slot.actions[t, c, 0]]
                total = total + config.value_coef * (float(returns[t, c]) - values) ** 2
                total = total + config.entropy_coef * (log_p.exp() * log_p).sum()
            return total if config.sum_losses else total / (T * B)

        gradients = gradient(self.theta, loss)
        norm = sum(float((g**2).sum()) for g in gradients.values()) ** 0.5
        self.num_clipped += norm > config.max_grad_norm
        factor = min(1.0, config.max_grad_norm / norm)
        rate = config.learning_rate
        if config.anneal_learning_rate:
            rate *= 1 - number / self.num_updates
        self.step({name: g * factor for name, g in gradients.items()}, rate)


def reevaluated(slot: Slot, theta: Theta) -> Slot:
    """Returns the slot with log-probabilities and values of the policy θ; final values stay."""
    log_p, values = (found.numpy() for found in outputs(theta, slot))
    log_probs = np.take_along_axis(log_p[:-1], slot.actions, axis=2)[..., 0]
    return Slot(slot.arrays() | {"log_probs": log_probs, "values": values})


def collect(theta: Theta, seed: int) -> Slot:
    """Returns a slot with the log-probabilities and values of the policy θ that collected it."""
    slot = make_slot(SPEC, seed)
    said = reevaluated(slot, theta)
    slot.log_probs[:], slot.values[:] = said.log_probs, said.values
    rng = np.random.default_rng(seed)
    for t in range(T):
        # The last observation of a truncated episode is in no slot, but its value is.
        final = network(theta, rng.standard_normal((B, OBS)))[1].numpy()
        slot.final_values[t] = np.where(slot.truncated[t], final, 0.0)
    return slot
