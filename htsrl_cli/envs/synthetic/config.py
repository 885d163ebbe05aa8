"""The keys of `env=synthetic/<name>`: environments for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.rules import INDEX, NOT_NEGATIVE, POSITIVE, Rules, count_to, one_of
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class SyntheticConfig(EnvConfig):
    """An environment for tests and benchmarks.

    Attributes:
        name: `sleep` (observations are random), `count` (observations encode column, episode and
            env step) or `faulty` (like `count`, but environment `fault_env` fails).
        distribution: distribution of an env step's sleep time: `constant`, `exponential` or
            `gamma`.
        mean_ms: mean sleep time of an env step in milliseconds.
        shape: shape parameter of the gamma distribution.
        episode_length: env steps per episode.
        truncate: end episodes by truncation instead of termination.
        fault: how `faulty` fails: `raise` (an exception), `crash` (SIGSEGV), `exit` (with status 3)
            or `hang`.
        fault_step: the env step at which environment `fault_env` fails, counted from 0 over all
            episodes of this environment. If negative, the environment fails when it is built.
        fault_env: index of the environment that fails, counted from 0.
        num_players: number of players in each environment; each player is a column.
    """

    rules: ClassVar[Rules] = {
        "name": one_of("sleep", "count", "faulty"),
        "distribution": one_of("constant", "exponential", "gamma"),
        "mean_ms": NOT_NEGATIVE,
        "shape": POSITIVE,
        "episode_length": count_to(1_000_000),
        "fault": one_of("raise", "crash", "exit", "hang"),
        "fault_env": INDEX,
        "num_players": count_to(1000),
        **EnvConfig.rules,
    }
    label_key: ClassVar[str] = "name"
    restores_exactly: ClassVar[bool] = True

    name: str
    distribution: str
    mean_ms: float
    shape: float
    episode_length: int
    truncate: bool
    fault: str
    fault_step: int
    fault_env: int
    num_players: int

    @property
    def is_tried(self) -> bool:
        """True if an environment is built before the run starts, to report mistakes early.

        False for `faulty`, which may crash when it is built.
        """
        return self.name != "faulty"

    @property
    def num_columns(self) -> int:
        """The number of columns of an environment: one column for each player."""
        return self.num_players


KIND = Kind(SyntheticConfig, "htsrl_cli.envs.synthetic.environment:make_synthetic_env")
