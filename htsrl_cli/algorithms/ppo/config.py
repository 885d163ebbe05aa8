"""`algo=ppo`: the keys of proximal policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.config.rules import COUNT, FRACTION, POSITIVE, Rules
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class PpoConfig(AlgoConfig):
    """Proximal policy optimisation, the clipped objective (Schulman et al., 2017).

    Attributes:
        gae_lambda: of generalised advantage estimation (Schulman et al., 2016).
        clip_coef: the ratio is clipped to 1 -/+ `clip_coef`.
        anneal_clip_coef: let `clip_coef` fall linearly to 0 over the run.
        clip_value_loss: clip the value's change by `clip_coef`, too.
        normalize_advantage: to mean 0 and standard deviation 1 in every minibatch.
        update_epochs: passes over a slot in one update.
        num_minibatches: minibatches in an epoch; each is one optimizer step.
        reevaluate: `hts` and `serial` compute a slot's log-probabilities and values anew with the
            parameters that the update starts from, which are one update newer than those that
            acted: the ratio begins at 1 and advantages rest on the newer values, as in `sync`. It
            costs a forward pass over the slot, and pays where an update moves the policy far.
            Otherwise both are those of the actors, as in the paper.
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
        """Passes over a slot in one update."""
        return self.update_epochs

    def check(self, num_rows: int, product: str) -> None:
        """A slot is cut into equal minibatches.

        Raises:
            ConfigError: it cannot be.
        """
        if num_rows % self.num_minibatches:
            remedy = f"must divide {product} = {num_rows}"
            raise ConfigError("algo.num_minibatches", self.num_minibatches, remedy)


KIND = Kind(PpoConfig, "htsrl_cli.algorithms.ppo.algorithm:Ppo")
