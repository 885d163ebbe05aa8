"""`env=synthetic/<name>`: the keys of environments made for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.rules import COUNT, INDEX, NOT_NEGATIVE, POSITIVE, Rules, one_of
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class SyntheticConfig(EnvConfig):
    """An environment for tests and benchmarks.

    Attributes:
        name: `sleep` (a step takes a random time), `count` (the observation encodes
            environment, episode and step) or `faulty` (raises, crashes or hangs on demand).
        distribution: of the step time: `constant`, `exponential` or `gamma`.
        mean_ms: mean step time in milliseconds; 0 does not sleep.
        shape: shape parameter of the gamma distribution.
        episode_length: steps in an episode; it terminates, or truncates where `truncate`.
        truncate: end episodes by truncation instead of termination.
        fault: what `faulty` does: `raise`, `crash` (SIGSEGV), `exit` or `hang`.
        fault_step: at which env step of the environment with index `fault_env`, over all its
            episodes; negative: while it is constructed.
        fault_env: index of the environment that fails.
        num_players: decision-makers of each environment.
    """

    rules: ClassVar[Rules] = {
        "name": one_of("sleep", "count", "faulty"),
        "distribution": one_of("constant", "exponential", "gamma"),
        "mean_ms": NOT_NEGATIVE,
        "shape": POSITIVE,
        "episode_length": COUNT,
        "fault": one_of("raise", "crash", "exit", "hang"),
        "fault_env": INDEX,
        "num_players": COUNT,
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
        """False for the one that may be asked to crash when it is built."""
        return self.name != "faulty"

    @property
    def num_columns(self) -> int:
        """One for each player."""
        return self.num_players


KIND = Kind(SyntheticConfig, "htsrl_cli.envs.synthetic.environment:make_synthetic_env")
