"""Base classes of the sections `env`, `algo` and `network`: the keys that all kinds share.

A kind is one sort of environment, algorithm or network, such as `atari`, `ppo` or `mlp`. The folder
of each kind defines a subclass with the kind's own keys. Executors import this module, so it
imports neither torch nor hydra nor omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from htsrl_cli.config.rules import (
    ACTIVATION,
    FRACTION,
    LINEAR_KERNEL,
    MEMORY,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    RATE,
    Rules,
    count_to,
    one_of,
)
from htsrl_cli.config.wording import did_you_mean
from htsrl_cli.errors import ConfigError

# The weights of a cell's gates then take at most 1 GiB.
_MAX_MEMORY_SIZE = 8192


@dataclass(frozen=True)
class EnvConfig:
    """Section `env`: keys and properties that all kinds of environments share.

    Attributes:
        rules: rules of the keys, by key name.
        label_key: key whose value names the environment in messages and reports.
        restores_exactly: True if `set_state` is known to restore a state exactly. Otherwise this is
            tested when a run starts, and a warning is logged if the test fails.
        install_hint: instruction for a user who lacks a package that the environment needs.
        renderers: names of the renderers for videos, the default first; empty if the environment
            cannot be rendered.
        cores_per_executor: number of cores that `actors.num_executors=auto` reserves for each
            executor. It is more than 1 for environments whose steps take only a small part of a
            run's processor time. It has no effect if the learner leaves its cores to the
            executors; see `htsrl_cli.config.auto`.
        has_tuned_settings: True if settings for the environment are chosen from the group `tuned`;
            False if the defaults of the algorithms suit this kind.
        state_package: package whose version decides whether a saved state can be read; None if no
            package decides this.
        kind: name of the kind of environment.
        step_timeout_s: seconds after which an env step counts as hung, which ends the run.
    """

    rules: ClassVar[Rules] = {"step_timeout_s": POSITIVE}
    label_key: ClassVar[str] = "kind"
    restores_exactly: ClassVar[bool] = False
    install_hint: ClassVar[str] = "install it"
    renderers: ClassVar[tuple[str, ...]] = ()
    cores_per_executor: ClassVar[int] = 1
    has_tuned_settings: ClassVar[bool] = False
    state_package: ClassVar[str | None] = None

    kind: str
    step_timeout_s: float

    @property
    def num_columns(self) -> int:
        """Number of columns that one environment fills: the number of its players."""
        return 1

    @property
    def is_tried(self) -> bool:
        """True if an environment is built before the run starts, to report mistakes early."""
        return True

    @property
    def one_per_process(self) -> str:
        """Reason why a process can hold only one environment; empty if it can hold several.

        Error messages end with this reason. Its form is `with KEY=VALUE: EXPLANATION`.
        """
        return ""

    @property
    def normalizes_reward(self) -> bool:
        """True if running statistics of each column's return normalize rewards."""
        return False

    @property
    def usual_renderer(self) -> str | None:
        """Default renderer; None if the environment cannot be rendered."""
        return next(iter(self.renderers), None)

    def check(self) -> None:
        """Checks combinations of this section's keys.

        Raises:
            ConfigError: values do not fit together; the first key that must change is reported.
        """

    def check_renderer(self, renderer: str) -> None:
        """Checks that `renderers` contains `renderer`.

        Raises:
            ConfigError: the environment has no such renderer.
        """
        if not self.renderers:
            remedy = f"env.kind={self.kind} cannot be rendered: leave this key out"
            raise ConfigError("renderer", renderer, remedy)
        if renderer not in self.renderers:
            remedy = f"must be one of {', '.join(self.renderers)} with env.kind={self.kind}"
            raise ConfigError("renderer", renderer, remedy + did_you_mean(renderer, self.renderers))

    def is_alone(self, renderer: str | None) -> bool:
        """Returns True if a process can hold only one environment with this renderer.

        Args:
            renderer: one of `renderers`; None if the environment is not rendered.
        """
        return bool(self.one_per_process)


@dataclass(frozen=True)
class AlgoConfig:
    """Section `algo`: keys that all actor-critic algorithms share.

    Attributes:
        rules: rules of the keys, by key name.
        needs_one_version: True if all rows of an update must come from one version of the policy,
            so that the algorithm cannot be used with `runner=async`.
        name: name of the algorithm.
        policies: `shared` (one network for all players) or `independent` (one network for each
            player of an environment; all environments use the same networks).
        squash: what brings Gaussian actions into the bounds of the environment: `clip` (the
            environment clips them; the policy does not know) or `tanh` (the policy squashes them,
            and its log-probabilities are those of the squashed actions).
        learning_rate: learning rate of the optimizer at the start of the run.
        anneal_learning_rate: decrease the learning rate linearly to 0 over the run.
        gamma: discount factor.
        entropy_coef: weight of the entropy bonus in the total loss.
        value_coef: weight of the value loss in the total loss.
        max_grad_norm: maximum norm of a policy's gradient over all its parameters; a larger
            gradient is scaled down to this norm.
    """

    rules: ClassVar[Rules] = {
        "learning_rate": RATE,
        "gamma": FRACTION,
        "entropy_coef": NOT_NEGATIVE,
        "value_coef": NOT_NEGATIVE,
        "max_grad_norm": POSITIVE,
        "policies": one_of("shared", "independent"),
        "squash": one_of("clip", "tanh"),
    }
    needs_one_version: ClassVar[bool] = False

    name: str
    policies: str
    squash: str
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
        """Returns the learning rate when a fraction `remaining` of the updates is still to come."""
        return self.learning_rate * (remaining if self.anneal_learning_rate else 1.0)

    def check(self, num_rows: int, product: str) -> None:
        """Checks combinations of this section's keys.

        Args:
            num_rows: how many of a slot's rows each policy learns from.
            product: the keys whose product is `num_rows`, for the error message.

        Raises:
            ConfigError: values do not fit together; the first key that must change is reported.
        """


@dataclass(frozen=True)
class NetworkConfig:
    """Section `network`: keys that all networks share.

    Attributes:
        rules: rules of the keys, by key name.
        name: name of the network, or `module:name` for a user-defined network.
        memory: the recurrent cell between trunk and heads: `none`, `lstm` or `gru`. If policy and
            value have separate trunks, each has a cell of its own.
        memory_size: number of units of the cell; without a memory, the key has no effect.
    """

    rules: ClassVar[Rules] = {
        "name": NOT_EMPTY,
        "memory": MEMORY,
        "memory_size": count_to(_MAX_MEMORY_SIZE),
    }

    name: str
    # With default values, because networks of other packages may be older than these keys.
    memory: str = field(default="none", kw_only=True)
    memory_size: int = field(default=256, kw_only=True)

    def check(self, obs_shape: tuple[int, ...]) -> None:
        """Checks that the network accepts observations of shape `obs_shape`.

        Raises:
            ConfigError: the network does not accept them.
        """


@dataclass(frozen=True)
class OwnNetworkConfig(NetworkConfig):
    """Section `network` of a user-defined network; see `htsrl_cli.networks.registry`.

    Attributes:
        hidden_sizes: sizes of the hidden layers; the network may ignore this key.
        activation: see `network=mlp`; the network may ignore this key.
        separate_value: see `network=mlp`; the network may ignore this key.
        linear_kernel: see `network=nature_cnn`; the network may ignore this key.
        kwargs: settings that only this network has, for example `+network.kwargs.width=3`.
    """

    rules: ClassVar[Rules] = {
        "activation": ACTIVATION,
        "linear_kernel": LINEAR_KERNEL,
        **NetworkConfig.rules,
    }

    hidden_sizes: tuple[int, ...] = ()
    activation: str = "tanh"
    separate_value: bool = True
    linear_kernel: str = "product"
    kwargs: dict[str, Any] = field(default_factory=dict)
