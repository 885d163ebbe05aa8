"""A2C as an `Algorithm`: its targets."""

from __future__ import annotations

import torch

from htsrl_cli.algorithms.base import Targets
from htsrl_cli.algorithms.policy_gradient import PolicyGradient
from htsrl_cli.algorithms.returns import Rollout, bootstrapped_returns


class A2c(PolicyGradient):
    """Advantage actor-critic (Mnih et al., 2016) with one optimizer step for each rollout."""

    def targets(self, rollout: Rollout) -> Targets:
        returns = bootstrapped_returns(rollout, self._config.gamma)
        return Targets(returns - rollout.values[:-1], returns, torch.ones_like(returns))
