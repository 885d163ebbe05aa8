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
        clip_value_loss: also clip the change of the value estimate to ± `clip_coef`; the value loss
            then uses the larger of the clipped and the unclipped squared error.
        normalize_advantage: normalize advantages to mean 0 and standard deviation 1 in every
            minibatch.
        update_epochs: number of epochs (passes over the rollout) in one update.
        num_minibatches: number of minibatches in an epoch; each minibatch gives one optimizer step.
        reevaluate: recompute a rollout's log-probabilities and values at the start of the update,
            with the current parameters. With the runners `hts` and `serial`, these parameters are
            one update newer than those of the behavior policy, which collected the rollout. After
            the recomputation, the probability ratio starts at 1, as it always does with the runner
            `sync`. The recomputation costs one more forward pass over the rollout. It helps if a
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
            num_rows: how many of a slot's rows each policy learns from.
            product: the keys whose product is `num_rows`, for the error message.

        Raises:
            ConfigError: `num_minibatches` does not divide `num_rows`.
        """
        if num_rows % self.num_minibatches:
            remedy = f"must divide {product} = {num_rows}"
            raise ConfigError("algo.num_minibatches", self.num_minibatches, remedy)


KIND = Kind(PpoConfig, "htsrl_cli.algorithms.ppo.algorithm:Ppo")
