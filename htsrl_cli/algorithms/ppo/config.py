"""`algo=ppo`: the keys of proximal policy optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.rules import COUNT, FRACTION, POSITIVE, Rules
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class PpoConfig(AlgoConfig):
    """Proximal policy optimization with the clipped objective (Schulman et al., 2017).

    Attributes:
        gae_lambda: the λ of generalized advantage estimation (Schulman et al., 2016).
        clip_coef: range of the clipping; the probability ratio is clipped to 1 ± `clip_coef`.
        anneal_clip_coef: decrease `clip_coef` linearly to 0 over the run.
        clip_value_loss: also clip the change of the value estimate to ± `clip_coef`.
        normalize_advantage: normalize advantages to mean 0 and standard deviation 1 in every
            minibatch.
        update_epochs: number of epochs (passes over a slot) in one update.
        num_minibatches: number of minibatches in an epoch; each minibatch gives one optimizer step.
        reevaluate: recompute a slot's log-probabilities and values with the parameters that the
            update starts from. With the runners `hts` and `serial`, these parameters are one update
            newer than those of the behavior policy. As with the runner `sync`, the probability
            ratio then starts at 1. This costs one more forward pass over the slot, and helps if a
            single update changes the policy a lot. If false, the log-probabilities and values of
            the behavior policy are used, as in the HTS-RL paper.
        adam_eps: Adam's epsilon.
    """

    rules: ClassVar[Rules] = {
        "gae_lambda": FRACTION,
        "clip_coef": POSITIVE,
        "update_epochs": COUNT,
        "num_minibatches": COUNT,
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
    reevaluate: bool
    adam_eps: float

    @property
    def num_epochs(self) -> int:
        """Number of epochs in one update."""
        return self.update_epochs

    def check(self, num_rows: int, product: str) -> None:
        """Checks that the rows of a slot can be divided into minibatches of equal size.

        Args:
            num_rows: number of rows of a slot that each policy learns from.
            product: the keys whose product is `num_rows`, for the error message.

        Raises:
            ConfigError: `num_minibatches` does not divide `num_rows`.
        """
        if num_rows % self.num_minibatches:
            remedy = f"must divide {product} = {num_rows}"
            raise ConfigError("algo.num_minibatches", self.num_minibatches, remedy)


KIND = Kind(PpoConfig, "htsrl_cli.algorithms.ppo.algorithm:Ppo")
