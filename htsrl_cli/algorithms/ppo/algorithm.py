"""PPO as an `Algorithm`: its optimizer, targets, minibatches and loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from htsrl_cli.algorithms.base import Indices, OldPolicy, Prediction, Targets
from htsrl_cli.algorithms.optimizers import eager
from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.algorithms.ppo.loss import ppo_loss
from htsrl_cli.algorithms.returns import Rollout, gae, vtrace
from htsrl_cli.seeding import minibatch_orders


class Ppo:
    """Proximal policy optimization (Schulman et al., 2017) with epochs of shuffled minibatches."""

    at_behaviour = False
    makes_one_step = False

    def __init__(self, config: PpoConfig) -> None:
        self._config = config
        self._is_weighted = config.correction in ("decoupled", "vtrace")
        self.reevaluates = config.correction != "none"
        self.max_weight = config.max_weight if self._is_weighted else math.inf
        self.anneals_loss = config.anneal_clip_coef

    def build_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        config = self._config
        adam = eager(torch.optim.Adam)
        return adam(parameters, lr=config.learning_rate, eps=config.adam_eps, fused=True)

    def targets(self, rollout: Rollout) -> Targets:
        config = self._config
        weights = rollout.ratios.clamp(max=config.max_weight)
        if config.correction == "vtrace":
            advantages, returns = vtrace(
                rollout, config.gamma, config.gae_lambda, config.vtrace_rho, config.vtrace_c
            )
            return Targets(advantages, returns, weights)
        advantages = gae(rollout, config.gamma, config.gae_lambda)
        returns = advantages + rollout.values[:-1]
        return Targets(
            advantages, returns, weights if self._is_weighted else torch.ones_like(weights)
        )

    def minibatches(self, seed: int, update: int, num_rows: int, shard: int) -> Iterator[Indices]:
        config = self._config
        size = num_rows // config.num_minibatches
        for order in minibatch_orders(seed, update, config.update_epochs, num_rows, shard):
            yield from order.reshape(-1, size)

    def weigh(self, advantages: Tensor) -> Tensor:
        if not self._config.normalize_advantage or len(advantages) < 2:
            return advantages
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        return ppo_loss(
            now,
            old,
            targets,
            clip_coef=config.clip_coef * (remaining if config.anneal_clip_coef else 1.0),
            clip_value_loss=config.clip_value_loss,
            entropy_coef=config.entropy_coef,
            value_coef=config.value_coef,
            num_rows=num_rows,
        )
