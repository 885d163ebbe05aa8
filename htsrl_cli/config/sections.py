"""Sections of a configuration, one frozen dataclass each.

A role gets only the sections that it needs. Values come from the YAML files of `configs/`, the only
place for defaults; `htsrl_cli.config.load` builds the sections. Executors import this module, so it
imports neither torch nor hydra nor omegaconf.
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
    """Section `actors`: environments, and the workers that step and infer.

    Attributes:
        num_envs: number of environments.
        num_executors: number of processes that step the environments; divides `num_envs`.
        num_actors: number of actors, which infer.
        inference_batch: rows of every forward pass, constant over the run.
        device: `auto`, `cpu` or `cuda:N`.
        precision: `fp32` or `bf16` (heads stay fp32).
        host: `process`, `thread` (of the main process) or `auto` (`thread` on a GPU).
        timeout_s: longest time that a forward pass may take, in seconds; then it counts as hung.
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
    """Section `learner`: device and sizes of the learner's computations.

    Attributes:
        device: `auto`, `cpu` or `cuda:N`.
        precision: `fp32` or `bf16` (parameters, optimizer and heads stay fp32).
        num_threads: threads that compute micro-batches on a CPU; changes no result.
        micro_batch: most rows that a thread or a GPU computes at a time; gradients are summed in
            order. Large ones are more efficient, small ones keep more threads busy.
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
    """Section `runner`: when executors, actors and learner work.

    Attributes:
        name: `hts`, `serial` (one thread, bit-identical to `hts`) or `sync` (the baseline).
        sync_interval: env steps that each environment takes in a rollout, between two barriers (T
            in this code, alpha in the HTS-RL paper).
        stop_grace_s: longest time that a stop waits for the current rollout, in seconds.
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
        """Schedule of the roles."""
        return RUNNERS[self.name]


@dataclass(frozen=True)
class CheckpointConfig:
    """Section `checkpoint`: how often checkpoints are taken, and how many are kept.

    Attributes:
        interval: env steps between two checkpoints.
        keep: number of newest checkpoints to keep.
    """

    rules: ClassVar[Rules] = {"interval": COUNT, "keep": COUNT}

    interval: int
    keep: int


@dataclass(frozen=True)
class LogConfig:
    """Section `log`: metrics, and the trackers that get them.

    Attributes:
        interval: env steps between two lines of metrics.
        rollouts_sha256: hash every rollout into the summary's `rollouts_sha256`.
        tensorboard: write TensorBoard event files.
        wandb: project of Weights & Biases that also gets the metrics; None for none.
        mlflow: experiment of MLflow that also gets the metrics; None for none.
    """

    rules: ClassVar[Rules] = {"interval": COUNT}

    interval: int
    rollouts_sha256: bool
    tensorboard: bool
    wandb: str | None
    mlflow: str | None


@dataclass(frozen=True)
class PeriodicEvalConfig:
    """Section `eval`: evaluation during the training, which changes no result.

    Attributes:
        interval: env steps between two evaluated policies; 0 switches evaluation off.
        episodes: whole games or episodes that each evaluated policy plays.
        video_interval: env steps between two evaluated policies whose first game is filmed; 0 for
            no videos.
        targets: scores; the run logs when the final metric first reaches each of them.
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
    """Complete configuration of `htsrl train`.

    Attributes:
        seed: seed of all random numbers of the run.
        total_steps: env steps of the run (frame skip included), rounded up to whole rollouts.
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
    eval: PeriodicEvalConfig
    seed: int
    total_steps: int


@dataclass(frozen=True)
class EvalConfig:
    """Complete configuration of `htsrl eval`.

    Attributes:
        checkpoint: run folder (for its newest checkpoint) or checkpoint file.
        episodes: whole games or episodes to play.
        seed: seed of the resets and of the sampled actions.
        greedy: take the most likely action instead of a sampled one.
        video: write a video of every game.
        renderer: renderer of the videos; None for the environment's default.
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
    """Section `bench` of `htsrl bench`: runners and durations.

    Attributes:
        runners: names of the runners to compare.
        repeats: number of rounds; in each, every runner runs once.
        seconds: least duration of a run, from its first line of metrics on.
        micro_seconds: duration of each one-thread measurement and of stepping alone, in seconds.
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
