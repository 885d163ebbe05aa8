"""Sections of a configuration, as frozen dataclasses.

An executor, an actor or the learner gets only the sections that it needs. `htsrl_cli.config.load`
builds the sections from the values in `configs/`, where the defaults are set. Executors import this
module, so it imports neither torch nor hydra nor omegaconf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
    count_to,
    one_of,
)
from htsrl_cli.config.runners import RUNNERS, Runner


@dataclass(frozen=True)
class ActorsConfig:
    """Section `actors`: the environments, executors and actors.

    Attributes:
        num_envs: number of environments.
        num_executors: number of executors, the processes that step the environments, at most
            `num_envs`; their shares of the environments differ by at most one.
        num_actors: number of actors, the workers that compute actions and values.
        inference_batch: number of rows of every forward pass; one row holds one observation.
        device: device of the actors: `auto`, `cpu` or `cuda:N`.
        precision: precision of the actors' networks: `fp32` or `bf16` (heads stay in fp32).
        host: place where an actor runs: `process` (its own process), `thread` (a thread of the main
            process) or `auto` (`thread` on a GPU, otherwise `process`).
        timeout_s: seconds after which a forward pass counts as hung, which ends the run.
    """

    rules: ClassVar[Rules] = {
        "num_envs": count_to(1_000_000),
        "num_executors": count_to(4096),
        "num_actors": count_to(4096),
        "inference_batch": count_to(65_536),
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
        device: device of the learner: `auto`, `cpu` or `cuda:N`.
        precision: precision of the forward and backward passes: `fp32` or `bf16` (parameters,
            optimizer and heads stay in fp32).
        num_threads: number of threads that compute micro-batches on a CPU; see `micro_batch`.
        micro_batch: maximum number of rows of a micro-batch, the part of a minibatch that a thread
            or a GPU computes at a time. A large micro-batch is more efficient; a small micro-batch
            keeps more threads busy.
        num_shards: number of shards, a power of two. Gradients of shards are summed in a fixed
            order, so up to this number of ranks (`torchrun`) can train with the same results.
        check_interval: number of updates between two comparisons of the ranks' parameters and
            optimizers, which must be equal.
    """

    rules: ClassVar[Rules] = {
        "device": DEVICE,
        "precision": PRECISION,
        "num_shards": Rule(
            lambda value: 1 <= value <= 4096 and value & (value - 1) == 0,
            "must be a power of two from 1 to 4096",
        ),
        "num_threads": count_to(4096),
        "micro_batch": COUNT,
        "check_interval": COUNT,
    }

    device: str
    precision: str
    num_threads: int
    micro_batch: int
    num_shards: int
    check_interval: int


@dataclass(frozen=True)
class RunnerConfig:
    """Section `runner`: the schedule of executors, actors and the learner.

    Attributes:
        name: `hts` (collects and learns at the same time), `serial` (like `hts`, but without
            workers; bit-identical to `hts`), `sync` (the baseline: collects, then learns) or
            `async` (nothing waits for a barrier; results depend on timing).
        sync_interval: env steps that each environment takes in one rollout, between two barriers (T
            in array shapes, alpha in the HTS-RL paper); with `async`, env steps of an unroll.
        stop_grace_s: maximum number of seconds from a stop signal to the end of the current
            rollout; after this time, the run stops at once.
        rank_timeout_s: seconds that ranks (`torchrun`) wait for a rank before it counts as hung,
            which ends the run.
    """

    rules: ClassVar[Rules] = {
        "name": one_of(*RUNNERS),
        "sync_interval": COUNT,
        "stop_grace_s": NOT_NEGATIVE,
        "rank_timeout_s": Rule(
            lambda value: 1 <= value <= 10_000_000, "must be between 1 and 10,000,000"
        ),
    }

    name: str
    sync_interval: int
    stop_grace_s: float
    rank_timeout_s: float

    @property
    def schedule(self) -> Runner:
        """Schedule that `name` stands for."""
        return RUNNERS[self.name]

    @staticmethod
    def schema(section: Mapping[str, Any]) -> type[RunnerConfig]:
        """Returns the dataclass for the keys of a section `runner`."""
        return AsyncRunnerConfig if section.get("name") == "async" else RunnerConfig


@dataclass(frozen=True)
class AsyncRunnerConfig(RunnerConfig):
    """Section `runner` with `runner=async`.

    Attributes:
        unrolls_per_update: number of unrolls that an update learns from, in order of arrival.
        spare_unrolls: number of unrolls that the queue can hold in addition to one for each
            environment. If it is full, environments wait for the learner. It limits memory and
            policy lag.
        record: write `schedule.jsonl`, with which the run can be replayed.
        replay: folder of a recorded run to repeat bit for bit; null runs freely.
    """

    rules: ClassVar[Rules] = {
        "unrolls_per_update": COUNT,
        "spare_unrolls": COUNT,
        **RunnerConfig.rules,
    }

    unrolls_per_update: int
    spare_unrolls: int
    record: bool
    replay: str | None


@dataclass(frozen=True)
class CheckpointConfig:
    """Section `checkpoint`: the period of checkpoints, and the number to keep.

    Attributes:
        interval: env steps between two checkpoints.
        keep: number of newest checkpoints to keep; the best checkpoint is also kept.
    """

    rules: ClassVar[Rules] = {"interval": COUNT, "keep": COUNT}

    interval: int
    keep: int


@dataclass(frozen=True)
class LogConfig:
    """Section `log`: metrics, and the trackers that receive them.

    Attributes:
        interval: env steps between two lines of metrics.
        rollouts_sha256: hash all rollouts, and write the hash to `summary.json`.
        tensorboard: write TensorBoard event files.
        wandb: Weights & Biases project to which metrics are also sent; null sends none.
        mlflow: MLflow experiment to which metrics are also sent; null sends none.
    """

    rules: ClassVar[Rules] = {"interval": COUNT}

    interval: int
    rollouts_sha256: bool
    tensorboard: bool
    wandb: str | None
    mlflow: str | None


@dataclass(frozen=True)
class PeriodicEvalConfig:
    """Section `eval`: evaluation during training, which changes no result.

    Attributes:
        interval: env steps between two evaluations of the policy; 0 turns evaluation off.
        episodes: number of whole games in each evaluation.
        max_episode_steps: maximum number of env steps of a game in an evaluation. A longer game is
            stopped, and its score is the return so far.
        video_interval: env steps between two evaluations whose first game is filmed; 0 films none.
        targets: target scores of the final metric, which is the mean over all games of the last ten
            evaluated policies. For each target, the run logs the env steps and the seconds of
            training at which the final metric first reached the target.
    """

    rules: ClassVar[Rules] = {
        "interval": INDEX,
        "episodes": COUNT,
        "max_episode_steps": COUNT,
        "video_interval": INDEX,
        "targets": SCORES,
    }

    interval: int
    episodes: int
    max_episode_steps: int
    video_interval: int
    targets: tuple[float, ...]


@dataclass(frozen=True)
class TrainConfig:
    """Complete configuration of `htsrl train`.

    Attributes:
        seed: seed of all random numbers of the run.
        total_steps: env steps of the run, summed over all environments and rounded up to whole
            rollouts. An env step is one step of one environment, whatever the frame skip and the
            number of players.
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
        checkpoint: checkpoint file or run folder; of a run folder, the newest intact checkpoint is
            used.
        episodes: number of whole games to play.
        max_episode_steps: maximum number of env steps of a game. A longer game is stopped, and its
            score is the return so far.
        seed: seed of the environments' resets and of the sampled actions.
        greedy: true plays the games with the most likely actions, false with sampled actions; null
            plays them once with each.
        video: write a video of every game.
        renderer: renderer of the videos; null chooses the environment's default.
        trusted: import the modules that the checkpoint names as `MODULE:NAME`, which runs their
            code. They are those of `env.id` and `network.name`.
    """

    rules: ClassVar[Rules] = {
        "checkpoint": NOT_EMPTY,
        "episodes": COUNT,
        "max_episode_steps": COUNT,
        "seed": SEED,
    }

    checkpoint: str
    episodes: int
    max_episode_steps: int
    seed: int
    greedy: bool | None
    video: bool
    renderer: str | None
    trusted: bool


@dataclass(frozen=True)
class BenchConfig:
    """Section `bench` of `htsrl bench`: runners to compare, and durations.

    Attributes:
        runners: names of the runners to compare.
        repeats: number of rounds; each round measures every runner once.
        seconds: minimum duration of a run in seconds, counted from its first line of metrics.
        micro_seconds: minimum duration in seconds of each measurement without a run: the rates of
            one thread, and the rate at which all cores step environments.
    """

    rules: ClassVar[Rules] = {
        "runners": Rule(
            lambda names: bool(names) and set(names) <= set(RUNNERS),
            f"must be a list of one or more of {', '.join(list(RUNNERS)[:-1])} "
            f"and {list(RUNNERS)[-1]}",
        ),
        "repeats": COUNT,
        "seconds": POSITIVE,
        "micro_seconds": POSITIVE,
    }

    runners: tuple[str, ...]
    repeats: int
    seconds: float
    micro_seconds: float
