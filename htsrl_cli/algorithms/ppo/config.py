"""`algo=ppo`: the keys of proximal policy optimization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.rules import AT_LEAST_ONE, COUNT, FRACTION, POSITIVE, Rules, one_of
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class PpoConfig(AlgoConfig):
    """Proximal policy optimization with the clipped objective (Schulman et al., 2017).

    Attributes:
        gae_lambda: the λ of generalized advantage estimation (Schulman et al., 2016).
        clip_coef: range of the clipping; the probability ratio is clipped to 1 ± `clip_coef`.
        anneal_clip_coef: decrease `clip_coef` linearly to 0 over the run.
        clip_value_loss: also clip the change of the value estimate to ± `clip_coef`; the value loss
            then uses the larger of the clipped and the unclipped squared error.
        normalize_advantage: normalize advantages to mean 0 and standard deviation 1 in every
            minibatch.
        update_epochs: number of epochs (passes over the rollout) in one update.
        num_minibatches: number of minibatches in an epoch; each minibatch gives one optimizer step.
        correction: what an update does about policy lag. With the runners `hts` and `serial`, the
            parameters at its start are one update newer than those of the behavior policy, which
            collected the rollout. `none` uses the log-probabilities and values of the behavior
            policy, as in the HTS-RL paper. The others recompute both with the current parameters,
            which costs one more forward pass over the rollout; the probability ratio then starts
            at 1. `proximal` does only this. `decoupled` also multiplies the policy loss of each row
            by an importance weight (Hilton et al., 2021): the action's probability at the start of
            the update, divided by that of the behavior policy. `vtrace` also corrects advantages
            and returns with these weights (Espeholt et al., 2018). With the runner `sync`, there is
            no lag, and the key has no effect.
        max_weight: largest importance weight of a row in the policy loss (`decoupled` and
            `vtrace`); larger weights count as this one.
        vtrace_rho: largest weight of a temporal difference in V-trace (rho-bar in the paper).
        vtrace_c: largest weight in V-trace with which a temporal difference is passed on to the
            env step before (c-bar in the paper).
        adam_eps: Adam's epsilon.
    """

    rules: ClassVar[Rules] = {
        "gae_lambda": FRACTION,
        "clip_coef": POSITIVE,
        "update_epochs": COUNT,
        "num_minibatches": COUNT,
        "correction": one_of("none", "proximal", "decoupled", "vtrace"),
        "max_weight": AT_LEAST_ONE,
        "vtrace_rho": AT_LEAST_ONE,
        "vtrace_c": AT_LEAST_ONE,
        "adam_eps": POSITIVE,
        **AlgoConfig.rules,
    }

    gae_lambda: float
    clip_coef: float
    anneal_clip_coef: bool
    clip_value_loss: bool
    normalize_advantage: bool
    update_epochs: int
    num_minibatches: int
    correction: str
    max_weight: float
    vtrace_rho: float
    vtrace_c: float
    adam_eps: float

    @property
    def num_epochs(self) -> int:
        """Number of epochs in one update."""
        return self.update_epochs

    def check(self, num_rows: int, product: str) -> None:
        """Checks that the rows of a slot can be divided into minibatches of equal size.

        Args:
            num_rows: how many of a slot's rows each policy learns from.
            product: the keys whose product is `num_rows`, for the error message; may add a reason.

        Raises:
            ConfigError: `num_minibatches` does not divide `num_rows`.
        """
        if num_rows % self.num_minibatches:
            example = math.gcd(num_rows, self.num_minibatches)
            remedy = f"must divide {num_rows} = {product}: give {example}, for example"
            raise ConfigError("algo.num_minibatches", self.num_minibatches, remedy)


KIND = Kind(PpoConfig, "htsrl_cli.algorithms.ppo.algorithm:Ppo")
