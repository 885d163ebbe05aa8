"""Configuration sections for tests: the values of the YAML files, with a test's changes.

Keys that are `auto` in the YAML files have fixed values here, the same on every machine.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from htsrl_cli.algorithms.a2c.config import A2cConfig
from htsrl_cli.algorithms.impala.config import ImpalaConfig
from htsrl_cli.algorithms.ppo.config import PpoConfig
from htsrl_cli.cli.compose import Composer, resolved
from htsrl_cli.config.kinds import NetworkConfig
from htsrl_cli.config.plain import build, find_kind
from htsrl_cli.config.sections import (
    ActorsConfig,
    AsyncRunnerConfig,
    BenchConfig,
    CheckpointConfig,
    EvalConfig,
    LearnerConfig,
    LogConfig,
    PeriodicEvalConfig,
    RunnerConfig,
    TrainConfig,
)
from htsrl_cli.envs.atari.config import AtariConfig
from htsrl_cli.envs.football.config import FootballConfig
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.envs.synthetic.config import SyntheticConfig

_SectionT = TypeVar("_SectionT")
_FIXED = (
    "actors.num_executors=2",
    "actors.num_actors=1",
    "actors.inference_batch=8",
    "learner.num_threads=2",
    "learner.micro_batch=256",
)


@cache
def _plain(*words: str) -> dict[str, Any]:
    return resolved(Composer("train").job([*_FIXED, *words]))


def _section(schema: type[_SectionT], name: str, words: tuple[str, ...] = ()) -> _SectionT:
    return build(schema, _plain(*words)[name], f"{name}.")


def atari(game: str, **changes: Any) -> AtariConfig:
    return replace(_section(AtariConfig, "env", ("env=atari/pong",)), game=game, **changes)


def football(scenario: str, **changes: Any) -> FootballConfig:
    words = ("env=football/5_vs_5",)
    return replace(_section(FootballConfig, "env", words), scenario=scenario, **changes)


def gym(id: str, **changes: Any) -> GymConfig:
    return replace(_section(GymConfig, "env", ("env=gym", "env.id=X-v0")), id=id, **changes)


def synthetic(name: str, **changes: Any) -> SyntheticConfig:
    """Returns a synthetic environment, whose env steps take no time by default."""
    base = _section(SyntheticConfig, "env", ("env=synthetic/sleep",))
    return replace(base, name=name, **{"mean_ms": 0.0, **changes})


def ppo(**changes: Any) -> PpoConfig:
    return replace(_section(PpoConfig, "algo", ("algo=ppo",)), **changes)


def a2c(**changes: Any) -> A2cConfig:
    return replace(_section(A2cConfig, "algo", ("algo=a2c",)), **changes)


def impala(**changes: Any) -> ImpalaConfig:
    return replace(_section(ImpalaConfig, "algo", ("algo=impala",)), **changes)


def network(name: str = "auto", **changes: Any) -> NetworkConfig:
    """Returns a network, whose linear layer is a matrix product by default."""
    schema = find_kind("network", name).config
    if name in ("auto", "nature_cnn"):
        changes = {"linear_kernel": "product", **changes}
    config: NetworkConfig = replace(_section(schema, "network", (f"network={name}",)), **changes)
    return config


def actors(**changes: Any) -> ActorsConfig:
    return replace(_section(ActorsConfig, "actors"), **changes)


def learner(**changes: Any) -> LearnerConfig:
    return replace(_section(LearnerConfig, "learner"), **changes)


def runner(name: str = "hts", **changes: Any) -> RunnerConfig:
    if name == "async":
        return replace(_section(AsyncRunnerConfig, "runner", ("runner=async",)), **changes)
    return replace(_section(RunnerConfig, "runner"), name=name, **changes)


def checkpoint(**changes: Any) -> CheckpointConfig:
    return replace(_section(CheckpointConfig, "checkpoint"), **changes)


def log(**changes: Any) -> LogConfig:
    return replace(_section(LogConfig, "log"), **changes)


def evaluation(**changes: Any) -> PeriodicEvalConfig:
    return replace(_section(PeriodicEvalConfig, "eval"), **changes)


def train(**changes: Any) -> TrainConfig:
    """Returns a whole training configuration with some sections and values changed."""
    return replace(build(TrainConfig, _plain()), **{"network": network(), **changes})


def eval(checkpoint: str, **changes: Any) -> EvalConfig:
    plain = resolved(Composer("eval").job(["checkpoint=x"]))
    return replace(build(EvalConfig, plain), checkpoint=checkpoint, **changes)


def bench(**changes: Any) -> BenchConfig:
    plain = resolved(Composer("bench").job([]), ["bench"])["bench"]
    return replace(build(BenchConfig, plain, "bench."), **changes)
