"""`algo=impala`: the keys of IMPALA's actor-critic with V-trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.algorithms.rmsprop import RmspropConfig
from htsrl_cli.config.rules import AT_LEAST_ONE, FRACTION, Rules
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class ImpalaConfig(RmspropConfig):
    """Actor-critic with V-trace (Espeholt et al., 2018), one step of RMSprop for each rollout.

    Every update computes log-probabilities and values with the current parameters. Importance
    weights correct for actions that an older policy chose. The weight of an action is its
    probability under the current policy, divided by that under the behavior policy.

    Attributes:
        gae_lambda: factor of the weights with which temporal differences are passed on; 1 in the
            paper's experiments.
        max_weight: largest importance weight of a row in the policy loss.
        vtrace_rho: largest weight of a temporal difference in V-trace (rho-bar in the paper).
        vtrace_c: largest weight in V-trace with which a temporal difference is passed on to the
            env step before (c-bar in the paper).
        sum_losses: sum the loss over the rows of an update, as in the paper, instead of taking the
            mean. Sums are larger, so `max_grad_norm` and `rmsprop_eps` must be, too.
    """

    rules: ClassVar[Rules] = {
        "gae_lambda": FRACTION,
        "max_weight": AT_LEAST_ONE,
        "vtrace_rho": AT_LEAST_ONE,
        "vtrace_c": AT_LEAST_ONE,
        **RmspropConfig.rules,
    }

    gae_lambda: float
    max_weight: float
    vtrace_rho: float
    vtrace_c: float
    sum_losses: bool


KIND = Kind(ImpalaConfig, "htsrl_cli.algorithms.impala.algorithm:Impala")
