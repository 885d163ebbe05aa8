"""IMPALA as an `Algorithm`: its targets, and its loss as a sum or a mean."""

from __future__ import annotations

from torch import Tensor

from htsrl_cli.algorithms.base import OldPolicy, Prediction, Targets
from htsrl_cli.algorithms.impala.config import ImpalaConfig
from htsrl_cli.algorithms.policy_gradient import PolicyGradient
from htsrl_cli.algorithms.returns import Rollout, vtrace


class Impala(PolicyGradient):
    """Actor-critic with V-trace (Espeholt et al., 2018)."""

    at_behaviour = False
    reevaluates = True

    _config: ImpalaConfig

    def __init__(self, config: ImpalaConfig) -> None:
        super().__init__(config)
        self.max_weight = config.max_weight

    def targets(self, rollout: Rollout) -> Targets:
        config = self._config
        advantages, returns = vtrace(
            rollout, config.gamma, config.gae_lambda, config.vtrace_rho, config.vtrace_c
        )
        return Targets(advantages, returns, rollout.ratios.clamp(max=config.max_weight))

    def loss(
        self, now: Prediction, old: OldPolicy, targets: Targets, num_rows: int, remaining: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        divisor = 1 if self._config.sum_losses else num_rows
        return super().loss(now, old, targets, divisor, remaining)
