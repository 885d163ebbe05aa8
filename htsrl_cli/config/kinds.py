"""Sections that choose a kind: the keys that all environments, algorithms or networks share.

The dataclass of each kind is a subclass in the kind's folder. Executors import this module, so it
imports neither torch nor hydra nor omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from htsrl_cli.config.rules import (
    FRACTION,
    LINEAR_KERNEL,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    Rules,
    one_of,
)
from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.errors import ConfigError


@dataclass(frozen=True)
class EnvConfig:
    """Section `env`: keys and properties that all kinds of environments share.

    Attributes:
        rules: rule of each key, by name.
        label_key: key whose value names the environment in folders and reports.
        restores_exactly: True if `set_state` is known to be exact. Otherwise this is tested when a
            run starts, and a run that cannot be resumed exactly warns.
        install_hint: what to do if a package that the environment needs is missing.
        renderers: names of the ways to draw a picture for videos, the default first; empty if there
            is no picture.
        cores_per_executor: cores for each executor, if `actors.num_executors` is `auto` and the
            learner computes on the CPU; more than 1 if env steps take little of the processor time.
        state_package: package whose version decides whether a saved state can be read; None if
            states are replayed.
        kind: name of the kind.
        step_timeout_s: longest time that an env step may take, in seconds; then it counts as hung.
    """

    rules: ClassVar[Rules] = {"step_timeout_s": POSITIVE}
    label_key: ClassVar[str] = "kind"
    restores_exactly: ClassVar[bool] = False
    install_hint: ClassVar[str] = "install it"
    renderers: ClassVar[tuple[str, ...]] = ()
    cores_per_executor: ClassVar[int] = 1
    state_package: ClassVar[str | None] = None

    kind: str
    step_timeout_s: float

    @property
    def num_columns(self) -> int:
        """Number of columns that one environment fills: its players, who act at the same time."""
        return 1

    @property
    def is_tried(self) -> bool:
        """True if an environment is built before the run starts, to find mistakes early."""
        return True

    @property
    def one_per_process(self) -> str:
        """Reason why a process can hold only one such environment; empty if it can hold many."""
        return ""

    @property
    def usual_renderer(self) -> str | None:
        """Default entry of `renderers`; None if there is no picture."""
        return next(iter(self.renderers), None)

    def check(self) -> None:
        """Checks combinations of this section's keys.

        Raises:
            ConfigError: values do not fit together; the first key that must change is reported.
        """

    def check_renderer(self, renderer: str) -> None:
        """Checks that `renderers` contains `renderer`.

        Raises:
            ConfigError: it does not.
        """
        if not self.renderers:
            remedy = f"env.kind={self.kind} has no picture: leave the key out"
            raise ConfigError("renderer", renderer, remedy)
        if renderer not in self.renderers:
            remedy = f"must be one of {', '.join(self.renderers)}, which env.kind={self.kind} has"
            raise ConfigError("renderer", renderer, remedy + did_you_mean(renderer, self.renderers))

    def is_alone(self, renderer: str | None) -> bool:
        """Returns True if a process can hold only one environment with this renderer.

        Args:
            renderer: one of `renderers`; None if nothing is drawn.
        """
        return bool(self.one_per_process)


@dataclass(frozen=True)
class AlgoConfig:
    """Section `algo`: keys that all actor-critic algorithms share.

    Attributes:
        rules: rule of each key, by name.
        name: name of the algorithm.
        policies: `shared` (one network for all players of an environment) or `independent` (one
            for each player).
        learning_rate: learning rate of the optimizer at the start of the run.
        anneal_learning_rate: decrease the learning rate linearly to 0 over the run.
        gamma: discount factor.
        entropy_coef, value_coef: weights of the entropy bonus and of the value loss.
        max_grad_norm: global norm to which the gradient of each minibatch is clipped.
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
        """Number of passes over a slot in one update."""
        return 1

    def learning_rate_at(self, remaining: float) -> float:
        """Returns the learning rate when the fraction `remaining` of all updates is left."""
        return self.learning_rate * (remaining if self.anneal_learning_rate else 1.0)

    def check(self, num_rows: int, product: str) -> None:
        """Checks combinations of this section's keys.

        Args:
            num_rows: rows of a slot that one policy learns from.
            product: the keys whose product is `num_rows`, for the error message.

        Raises:
            ConfigError: values do not fit together; the first key that must change is reported.
        """


@dataclass(frozen=True)
class NetworkConfig:
    """Section `network`: keys that all networks share.

    Attributes:
        rules: rule of each key, by name.
        name: name of the network, or `module:name` for a user-defined one.
    """

    rules: ClassVar[Rules] = {"name": NOT_EMPTY}

    name: str

    def check(self, obs_shape: tuple[int, ...]) -> None:
        """Checks that the network accepts observations of this shape.

        Args:
            obs_shape: shape of one observation.

        Raises:
            ConfigError: it does not.
        """


@dataclass(frozen=True)
class OwnNetworkConfig(NetworkConfig):
    """Section `network` of a user-defined network; see `htsrl_cli.networks.registry`.

    Attributes:
        hidden_sizes: sizes of hidden layers, which the network may ignore.
        linear_kernel: see `nature_cnn`; the network may ignore it.
        kwargs: further settings, for example `+network.kwargs.width=3`.
    """

    rules: ClassVar[Rules] = {"linear_kernel": LINEAR_KERNEL, **NetworkConfig.rules}

    hidden_sizes: tuple[int, ...] = ()
    linear_kernel: str = "product"
    kwargs: dict[str, Any] = field(default_factory=dict)
