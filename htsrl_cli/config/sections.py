"""The sections of a configuration: one frozen dataclass each.

A role gets the section it needs and nothing else. Values come from the YAML files of `configs/`,
which is the only place for defaults; `htsrl_cli.config.load` makes sections of them. Executors
import this module: it is free of torch, hydra and omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.kinds import AlgoConfig, EnvConfig, NetworkConfig
from htsrl_cli.config.rules import (
    COUNT,
    DEVICE,
    INDEX,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    PRECISION,
    SCORES,
    SEED,
    Rule,
    Rules,
    one_of,
)
from htsrl_cli.config.runners import RUNNERS, Runner


@dataclass(frozen=True)
class ActorsConfig:
    """The section `actors`: who steps and who infers.

    Attributes:
        num_envs: environments in all.
        num_executors: processes that step them; divides `num_envs`.
        num_actors: hosts that infer.
        inference_batch: rows of every forward pass, a constant of the run.
        device: `auto`, `cpu` or `cuda:N`.
        precision: `fp32` or `bf16` (heads stay fp32).
        host: `process`, `thread` (of the learner's process) or `auto`: threads on a GPU.
        timeout_s: a forward pass longer than this is a hang.
    """

    rules: ClassVar[Rules] = {
        "num_envs": COUNT,
        "num_executors": COUNT,
        "num_actors": COUNT,
        "inference_batch": COUNT,
        "device": DEVICE,
        "precision": PRECISION,
        "host": one_of("process", "thread", "auto"),
        "timeout_s": POSITIVE,
    }

    num_envs: int
    num_executors: int
    num_actors: int
    inference_batch: int
    device: str
    precision: str
    host: str
    timeout_s: float


@dataclass(frozen=True)
class LearnerConfig:
    """The section `learner`: who learns.

    Attributes:
        device: `auto`, `cpu` or `cuda:N`.
        precision: `fp32` or `bf16` (parameters, optimizer and heads stay fp32).
        num_threads: threads that compute micro-batches on a CPU; changes no result.
        micro_batch: rows at most that one thread, or a GPU, computes at a time; gradients are
            summed in order. More take less time, fewer keep more threads busy with a minibatch.
    """

    rules: ClassVar[Rules] = {
        "device": DEVICE,
        "precision": PRECISION,
        "num_threads": COUNT,
        "micro_batch": COUNT,
    }

    device: str
    precision: str
    num_threads: int
    micro_batch: int


@dataclass(frozen=True)
class RunnerConfig:
    """The section `runner`: how the roles are run.

    Attributes:
        name: `hts`, `serial` (one thread, bit-identical to `hts`) or `sync` (the baseline).
        sync_interval: env steps of every environment between two barriers (alpha, T).
        stop_grace_s: how long a stop waits for the interval under way.
    """

    rules: ClassVar[Rules] = {
        "name": one_of(*RUNNERS),
        "sync_interval": COUNT,
        "stop_grace_s": NOT_NEGATIVE,
    }

    name: str
    sync_interval: int
    stop_grace_s: float

    @property
    def schedule(self) -> Runner:
        """The way in which the roles take turns."""
        return RUNNERS[self.name]


@dataclass(frozen=True)
class CheckpointConfig:
    """The section `checkpoint`: when checkpoints are taken, and how many are kept.

    Attributes:
        interval: env steps between two checkpoints.
        keep: newest checkpoints that are kept.
    """

    rules: ClassVar[Rules] = {"interval": COUNT, "keep": COUNT}

    interval: int
    keep: int


@dataclass(frozen=True)
class LogConfig:
    """The section `log`: what is logged.

    Attributes:
        interval: env steps between two lines of metrics.
        rollouts_sha256: hash every slot into the summary's `rollouts_sha256`.
        tensorboard: write event files.
        wandb: a project of Weights & Biases that gets the lines, too.
        mlflow: an experiment of MLflow that gets them.
    """

    rules: ClassVar[Rules] = {"interval": COUNT}

    interval: int
    rollouts_sha256: bool
    tensorboard: bool
    wandb: str | None
    mlflow: str | None


@dataclass(frozen=True)
class EvaluationConfig:
    """The section `eval`: evaluation beside the training, which changes no result.

    Attributes:
        interval: env steps between two policies that are evaluated; 0 switches it off.
        episodes: whole games that each of them plays.
        video_interval: env steps between two of those policies whose first game is filmed; 0: none.
        targets: scores; it is logged when the final metric first reached each.
    """

    rules: ClassVar[Rules] = {
        "interval": INDEX,
        "episodes": COUNT,
        "video_interval": INDEX,
        "targets": SCORES,
    }

    interval: int
    episodes: int
    video_interval: int
    targets: tuple[float, ...]


@dataclass(frozen=True)
class TrainConfig:
    """The whole resolved configuration of `htsrl train`.

    Attributes:
        seed: seed of everything random in the run.
        total_steps: env steps of the run, of all environments together (frame skip included);
            rounded up to whole rollouts.
    """

    rules: ClassVar[Rules] = {"seed": SEED, "total_steps": COUNT}

    env: EnvConfig
    algo: AlgoConfig
    network: NetworkConfig
    actors: ActorsConfig
    learner: LearnerConfig
    runner: RunnerConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    eval: EvaluationConfig
    seed: int
    total_steps: int


@dataclass(frozen=True)
class EvalConfig:
    """The whole configuration of `htsrl eval`.

    Attributes:
        checkpoint: a run folder (its newest checkpoint) or a checkpoint file.
        episodes: whole games, or episodes, to play.
        seed: of the resets and the sampled actions.
        greedy: take the most likely action instead of a sampled one.
        video: write a video of every game.
        renderer: how games are pictured; None for the environment's usual way.
    """

    rules: ClassVar[Rules] = {"checkpoint": NOT_EMPTY, "episodes": COUNT, "seed": SEED}

    checkpoint: str
    episodes: int
    seed: int
    greedy: bool
    video: bool
    renderer: str | None


@dataclass(frozen=True)
class BenchConfig:
    """The section `bench` of `htsrl bench`: how it measures.

    Attributes:
        runners: what to compare.
        repeats: rounds; in each, every runner runs once.
        seconds: of a run from its first line of metrics on.
        micro_seconds: of each of the three one-thread measurements of a round.
    """

    rules: ClassVar[Rules] = {
        "runners": Rule(
            lambda names: bool(names) and set(names) <= set(RUNNERS),
            f"must be a list of {', '.join(list(RUNNERS)[:-1])} and {list(RUNNERS)[-1]}",
        ),
        "repeats": COUNT,
        "seconds": POSITIVE,
        "micro_seconds": POSITIVE,
    }

    runners: tuple[str, ...]
    repeats: int
    seconds: float
    micro_seconds: float
