"""The sections that choose a kind: what all environments, algorithms and networks have in common.

Each kind's own dataclass is a subclass and lies in the kind's folder. Executors import this module:
it is free of torch, hydra and omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from htsrl_cli.config.rules import FRACTION, NOT_EMPTY, NOT_NEGATIVE, POSITIVE, Rules, one_of
from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.errors import ConfigError


@dataclass(frozen=True)
class EnvConfig:
    """The section `env`: what all kinds of environments have in common.

    Attributes:
        rules: the rule of each key, by name.
        label_key: the key whose value names the environment in folders and reports.
        restores_exactly: `set_state` is known to be exact. Otherwise that is tried when a run
            starts, and a run that cannot be resumed exactly says so.
        install_hint: what to do where a package is missing that the environment needs.
        renderers: ways to picture a game in a video, the usual one first; empty where there is no
            picture.
        state_package: the package whose version decides whether a saved state can be read; None
            where states are replays.
        kind: the kind's name.
        step_timeout_s: a step longer than this is a hang.
    """

    rules: ClassVar[Rules] = {"step_timeout_s": POSITIVE}
    label_key: ClassVar[str] = "kind"
    restores_exactly: ClassVar[bool] = False
    install_hint: ClassVar[str] = "install it"
    renderers: ClassVar[tuple[str, ...]] = ()
    state_package: ClassVar[str | None] = None

    kind: str
    step_timeout_s: float

    @property
    def num_columns(self) -> int:
        """Columns of the slot that one environment fills: players that act at the same time."""
        return 1

    @property
    def is_tried(self) -> bool:
        """True if an instance is built before a run starts, so that mistakes show early."""
        return True

    @property
    def one_per_process(self) -> str:
        """Why a process can hold only one such environment; empty where it can hold many."""
        return ""

    @property
    def usual_renderer(self) -> str | None:
        """The way to picture games unless another is asked for; None where there is none."""
        return next(iter(self.renderers), None)

    def check(self) -> None:
        """Checks combinations of this section's keys.

        Raises:
            ConfigError: for the first key that has to change.
        """

    def check_renderer(self, renderer: str) -> None:
        """Checks that games can be pictured in this way.

        Raises:
            ConfigError: they cannot.
        """
        if not self.renderers:
            remedy = f"env.kind={self.kind} has no picture: leave the key out"
            raise ConfigError("renderer", renderer, remedy)
        if renderer not in self.renderers:
            remedy = f"must be one of {', '.join(self.renderers)}, which env.kind={self.kind} has"
            raise ConfigError("renderer", renderer, remedy + did_you_mean(renderer, self.renderers))

    def is_alone(self, renderer: str | None) -> bool:
        """Returns True if a process can hold only one such environment that is pictured like this.

        Args:
            renderer: one of `renderers`; None where it is not pictured.
        """
        return bool(self.one_per_process)


@dataclass(frozen=True)
class AlgoConfig:
    """The section `algo`: what all actor-critic algorithms have in common.

    Attributes:
        rules: the rule of each key, by name.
        name: the algorithm's name.
        policies: `shared` (one network for all players of an environment) or `independent` (one
            for each player).
        learning_rate: the optimizer's learning rate.
        anneal_learning_rate: let the learning rate fall linearly to 0 over the run.
        gamma: discount factor.
        entropy_coef, value_coef: weights of the entropy bonus and of the value loss.
        max_grad_norm: every minibatch's gradient is clipped to this global norm.
    """

    rules: ClassVar[Rules] = {
        "learning_rate": POSITIVE,
        "gamma": FRACTION,
        "entropy_coef": NOT_NEGATIVE,
        "value_coef": NOT_NEGATIVE,
        "max_grad_norm": POSITIVE,
        "policies": one_of("shared", "independent"),
    }

    name: str
    policies: str
    learning_rate: float
    anneal_learning_rate: bool
    gamma: float
    entropy_coef: float
    value_coef: float
    max_grad_norm: float

    @property
    def num_epochs(self) -> int:
        """Passes over a slot in one update."""
        return 1

    def learning_rate_at(self, remaining: float) -> float:
        """Returns the rate when a fraction `remaining` of all updates is still to come."""
        return self.learning_rate * (remaining if self.anneal_learning_rate else 1.0)

    def check(self, num_rows: int, product: str) -> None:
        """Checks combinations of this section's keys.

        Args:
            num_rows: rows of a slot that a policy learns from.
            product: the keys whose product they are, for the error.

        Raises:
            ConfigError: for the first key that has to change.
        """


@dataclass(frozen=True)
class NetworkConfig:
    """The section `network`: what all networks have in common.

    Attributes:
        rules: the rule of each key, by name.
        name: the network's name, or `module:name` for one's own.
    """

    rules: ClassVar[Rules] = {"name": NOT_EMPTY}

    name: str

    def check(self, obs_shape: tuple[int, ...]) -> None:
        """Checks whether the network can take such observations.

        Raises:
            ConfigError: it cannot.
        """


@dataclass(frozen=True)
class OwnNetworkConfig(NetworkConfig):
    """`network.name=module:name`: the user's own network; see `htsrl_cli.networks.registry`.

    Attributes:
        hidden_sizes: for the network to use if it likes.
        kwargs: what else it needs, for example `+network.kwargs.width=3`.
    """

    hidden_sizes: tuple[int, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
