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
        gae_lambda: λ of generalized advantage estimation (Schulman et al., 2016).
        clip_coef: the probability ratio is clipped to 1 ± `clip_coef`.
        anneal_clip_coef: decrease `clip_coef` linearly to 0 over the updates.
        clip_value_loss: clip the change of the value by `clip_coef`, too.
        normalize_advantage: normalize advantages to mean 0 and standard deviation 1 in every
            minibatch.
        update_epochs: epochs (passes over a slot) in one update.
        num_minibatches: minibatches in an epoch; each is one optimizer step.
        reevaluate: recompute a slot's log-probabilities and values with the parameters that the
            update starts from. Under `hts` and `serial` these are one update newer than the
            behavior policy. The ratio then begins at 1 and advantages use the newer values, as in
            `sync`. It costs a forward pass over the slot, and pays where one update changes the
            policy much. If False, both are those of the behavior policy, as in the HTS-RL paper.
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
        """The number of epochs in one update."""
        return self.update_epochs

    def check(self, num_rows: int, product: str) -> None:
        """Checks that a slot can be cut into equal minibatches.

        Args:
            num_rows: rows of a slot that a policy learns from.
            product: the keys whose product that is, for the message.

        Raises:
            ConfigError: it cannot.
        """
        if num_rows % self.num_minibatches:
            remedy = f"must divide {product} = {num_rows}"
            raise ConfigError("algo.num_minibatches", self.num_minibatches, remedy)


KIND = Kind(PpoConfig, "htsrl_cli.algorithms.ppo.algorithm:Ppo")
