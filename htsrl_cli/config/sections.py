"""The configuration's schemas and the sizes derived from it.

One frozen dataclass for each section; a role gets the section it needs and nothing else.
Values come from `configs/`; `htsrl_cli.cli.compose` turns them into a `TrainConfig`. This module
is imported by executors and therefore free of torch, hydra and omegaconf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class AtariConfig:
    """`env=atari/<game>`; names follow the Arcade Learning Environment (Machado et al., 2018).

    Attributes:
        game: ROM name in snake case, for example `space_invaders`.
        frame_skip: emulator frames for each env step.
        screen_size: side of the square gray observation, in pixels.
        frame_stack: observations are the last `frame_stack` screens, [H, W, frame_stack].
        noop_max: a reset plays 0 to `noop_max` no-ops (uniform).
        fire_on_reset: press FIRE after a reset or lost life, where the minimal actions have it.
        repeat_action_probability: sticky actions; 0 switches them off.
        full_action_space: all 18 actions instead of the game's minimal set.
        max_num_frames_per_episode: a game is truncated after so many frames.
        reward_clipping: train on the sign of the reward.
        terminal_on_life_loss: a lost life terminates the training episode, not the game.
        step_timeout_s: a step longer than this is a hang.
        renderers: how games can be pictured, the usual way first; none where they cannot.
        state_package: saves environments' states, in a format that may change with its version;
            None where states are replays of resets and actions.
    """

    num_players: ClassVar[int] = 1
    state_package: ClassVar[str | None] = "ale-py"
    renderers: ClassVar[tuple[str, ...]] = ("screen",)

    game: str
    kind: str = "atari"
    frame_skip: int = 4
    screen_size: int = 84
    frame_stack: int = 4
    noop_max: int = 30
    fire_on_reset: bool = True
    repeat_action_probability: float = 0.0
    full_action_space: bool = False
    max_num_frames_per_episode: int = 108_000
    reward_clipping: bool = True
    terminal_on_life_loss: bool = True
    step_timeout_s: float = 60.0


@dataclass(frozen=True)
class GymConfig:
    """`env=gym env.id=...`: any registered Gymnasium environment.

    Attributes:
        id: a Gymnasium id, or `module:id`, whose module is imported first in every worker.
        kwargs: keyword arguments for `gymnasium.make`.
        max_episode_steps: time limit in env steps; null keeps the registered one.
        step_timeout_s: a step longer than this is a hang.
    """

    num_players: ClassVar[int] = 1
    state_package: ClassVar[str | None] = None
    renderers: ClassVar[tuple[str, ...]] = ("rgb_array",)

    id: str
    kind: str = "gym"
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    step_timeout_s: float = 60.0


@dataclass(frozen=True)
class SyntheticConfig:
    """`env=synthetic/<name>`: environments for tests and benchmarks.

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
        step_timeout_s: a step longer than this is a hang.
    """

    state_package: ClassVar[str | None] = None
    renderers: ClassVar[tuple[str, ...]] = ()

    name: str
    kind: str = "synthetic"
    distribution: str = "constant"
    mean_ms: float = 0.0
    shape: float = 1.0
    episode_length: int = 100
    truncate: bool = False
    fault: str = "raise"
    fault_step: int = 100
    fault_env: int = 0
    num_players: int = 1
    step_timeout_s: float = 60.0


FOOTBALL_SCENARIOS = (
    "academy_empty_goal_close",
    "academy_empty_goal",
    "academy_run_to_score",
    "academy_run_to_score_with_keeper",
    "academy_pass_and_shoot_with_keeper",
    "academy_run_pass_and_shoot_with_keeper",
    "academy_3_vs_1_with_keeper",
    "academy_corner",
    "academy_counterattack_easy",
    "academy_counterattack_hard",
    "academy_single_goal_versus_lazy",
    "1_vs_1_easy",
    "5_vs_5",
    "11_vs_11_competition",
    "11_vs_11_kaggle",
    "11_vs_11_easy_stochastic",
    "11_vs_11_stochastic",
    "11_vs_11_hard_stochastic",
)


@dataclass(frozen=True)
class FootballConfig:
    """`env=football/<scenario>`: Google Research Football (Kurach et al., 2020).

    Attributes:
        scenario: name of a scenario of the package gfootball.
        representation: of observations: `extracted` (the super minimap, [72, 96, 4]),
            `simple115v2` (a vector), `pixels_gray` or `pixels` (rendered, [72, 96, 1 or 3]).
        frame_stack: observations are the last `frame_stack` ones, joined along the last axis.
        rewards: `scoring` (+1 for a goal, -1 for one let in), or `scoring,checkpoints`: also 0.1
            for each of ten distances to the opponent's goal that the ball is first brought to.
        num_left_players, num_right_players: controlled players of each side. Each is a column;
            those on the right see the pitch rotated, as if they played from left to right.
        step_timeout_s: a step longer than this is a hang.
        renderers: `pitch` (drawn from above) or `engine` (the engine's own picture, about one a
            second, and one game at a time).
    """

    state_package: ClassVar[str | None] = "gfootball"
    renderers: ClassVar[tuple[str, ...]] = ("pitch", "engine")

    scenario: str
    kind: str = "football"
    representation: str = "extracted"
    frame_stack: int = 4
    rewards: str = "scoring,checkpoints"
    num_left_players: int = 1
    num_right_players: int = 0
    step_timeout_s: float = 60.0

    @property
    def num_players(self) -> int:
        """Controlled players of both sides."""
        return self.num_left_players + self.num_right_players

    @property
    def is_rendered(self) -> bool:
        """Whether observations are pictures, which one environment of a process can have."""
        return self.representation.startswith("pixels")


EnvConfig = AtariConfig | GymConfig | SyntheticConfig | FootballConfig


@dataclass(frozen=True)
class PpoConfig:
    """Proximal policy optimisation, the clipped objective (Schulman et al., 2017).

    Attributes:
        learning_rate: Adam's; with `anneal_learning_rate` it falls linearly to 0 over the run.
        anneal_clip_coef: the clip range falls linearly with the updates, too.
        gae_lambda: of generalised advantage estimation (Schulman et al., 2016).
        clip_coef: the ratio is clipped to 1 -/+ `clip_coef`.
        clip_value_loss: clip the value's change by `clip_coef`, too.
        normalize_advantage: to mean 0 and standard deviation 1 in every minibatch.
        update_epochs: passes over a slot in one update.
        num_minibatches: minibatches in an epoch; each is one optimizer step.
        reevaluate: `hts` and `serial` compute a slot's log-probabilities and values anew with the
            parameters that the update starts from, which are one update newer than those that
            acted: the ratio begins at 1 and advantages rest on the newer values, as in `sync`. It
            costs a forward pass over the slot, and pays where an update moves the policy far.
            Otherwise both are those of the actors, as in the paper.
        max_grad_norm: every minibatch's gradient is clipped to this global norm.
        adam_eps: Adam's epsilon.
        hidden_sizes: of the multilayer perceptron that serves vector observations.
        policies: `shared` (one network for all players of an environment) or `independent` (one
            for each player).
    """

    name: str = "ppo"
    learning_rate: float = 2.5e-4
    anneal_learning_rate: bool = True
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_coef: float = 0.1
    anneal_clip_coef: bool = False
    clip_value_loss: bool = True
    normalize_advantage: bool = True
    update_epochs: int = 4
    num_minibatches: int = 4
    reevaluate: bool = False
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    adam_eps: float = 1e-5
    hidden_sizes: tuple[int, ...] = (64, 64)
    policies: str = "shared"


@dataclass(frozen=True)
class A2cConfig:
    """Advantage actor-critic (Mnih et al., 2016) with the one-step delayed gradient of HTS-RL.

    Returns run to the end of the slot; one update for each slot, by RMSprop.
    """

    name: str = "a2c"
    learning_rate: float = 7e-4
    anneal_learning_rate: bool = False
    gamma: float = 0.99
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    rmsprop_alpha: float = 0.99
    rmsprop_eps: float = 1e-5
    hidden_sizes: tuple[int, ...] = (64, 64)
    policies: str = "shared"


AlgoConfig = PpoConfig | A2cConfig


def num_policies(algo: AlgoConfig, num_players: int) -> int:
    """Networks that are trained: one for all players, or one for each."""
    return num_players if algo.policies == "independent" else 1


@dataclass(frozen=True)
class ActorsConfig:
    """Who steps and who infers.

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

    num_envs: int = 16
    num_executors: int = 2
    num_actors: int = 1
    inference_batch: int = 8
    device: str = "auto"
    precision: str = "fp32"
    host: str = "auto"
    timeout_s: float = 60.0


@dataclass(frozen=True)
class LearnerConfig:
    """Who learns.

    Attributes:
        device: `auto`, `cpu` or `cuda:N`.
        precision: `fp32` or `bf16` (parameters, optimizer and heads stay fp32).
        num_threads: threads that compute micro-batches on a CPU; changes no result.
        micro_batch: rows at most that one thread, or a GPU, computes at a time; gradients are
            summed in order. More take less time, fewer keep more threads busy with a minibatch.
    """

    device: str = "auto"
    precision: str = "fp32"
    num_threads: int = 2
    micro_batch: int = 256


@dataclass(frozen=True)
class RunnerConfig:
    """How the roles are run.

    Attributes:
        name: `hts`, `serial` (one thread, bit-identical to `hts`) or `sync` (the baseline).
        sync_interval: env steps of every environment between two barriers (alpha, T).
        stop_grace_s: how long a stop waits for the interval under way.
    """

    name: str = "hts"
    sync_interval: int = 128
    stop_grace_s: float = 60.0


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are taken (`interval`, in env steps) and how many (`keep`) are kept."""

    interval: int = 200_000
    keep: int = 3


@dataclass(frozen=True)
class LogConfig:
    """What is logged.

    Attributes:
        interval: env steps between two lines of metrics.
        rollouts_sha256: hash every slot into the summary's `rollouts_sha256`.
        tensorboard: write event files.
        wandb: a project of Weights & Biases that gets the lines, too.
        mlflow: an experiment of MLflow that gets them.
    """

    interval: int = 10_000
    rollouts_sha256: bool = True
    tensorboard: bool = True
    wandb: str | None = None
    mlflow: str | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training, in a process of its own; it changes no result.

    Attributes:
        interval: env steps between two policies that are evaluated; 0 switches it off.
        episodes: whole games that each of them plays.
        video_interval: env steps between two of those policies whose first game is filmed; 0: none.
        targets: scores; it is logged when the final metric first reached each.
    """

    interval: int = 0
    episodes: int = 10
    video_interval: int = 0
    targets: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainConfig:
    """The whole resolved configuration of `htsrl train`.

    `total_steps` counts env steps (frame skip included) and is rounded up to whole intervals.
    """

    env: EnvConfig
    algo: AlgoConfig
    actors: ActorsConfig
    learner: LearnerConfig
    runner: RunnerConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    eval: EvaluationConfig = EvaluationConfig()
    seed: int = 1
    total_steps: int = 10_000_000


@dataclass(frozen=True)
class EvalConfig:
    """The whole configuration of `htsrl eval`.

    Attributes:
        checkpoint: a run folder (its newest checkpoint) or a checkpoint file.
        episodes: whole games, or episodes, to play.
        seed: of the resets and the sampled actions.
        greedy: take the most likely action instead of a sampled one.
        video: write a video of every game.
        renderer: how games are pictured in videos, one of the environment's `renderers`; None:
            its usual way.
    """

    checkpoint: str
    episodes: int = 10
    seed: int = 0
    greedy: bool = False
    video: bool = False
    renderer: str | None = None


@dataclass(frozen=True)
class BenchConfig:
    """How `htsrl bench` measures.

    Attributes:
        runners: what to compare.
        repeats: rounds; in each, every runner runs once.
        seconds: of a run from its first line of metrics on.
        micro_seconds: of each of the three one-thread measurements of a round.
    """

    runners: tuple[str, ...] = ("hts", "sync", "serial")
    repeats: int = 3
    seconds: float = 20.0
    micro_seconds: float = 2.0


@dataclass(frozen=True)
class RunPlan:
    """Sizes derived from the configuration, computed once.

    Attributes:
        num_columns: decision-makers, the slot's second axis (B): the players of all environments.
        sync_interval: env steps in an interval, the slot's first axis (T).
        steps_per_interval: env steps of all environments in an interval.
        num_policies: networks that are trained; column c acts by number c % num_policies.
        num_intervals: intervals in the run.
        num_updates: updates in the run, over which schedules fall.
        lag: version of the parameters an update starts from, minus that of its data.
    """

    num_columns: int
    sync_interval: int
    steps_per_interval: int
    num_policies: int
    num_intervals: int
    num_updates: int
    lag: int

    @classmethod
    def of(cls, config: TrainConfig) -> RunPlan:
        """Derives the sizes of `config`."""
        steps = config.runner.sync_interval * config.actors.num_envs
        num_intervals = -(-config.total_steps // steps)
        lag = 0 if config.runner.name == "sync" else 1
        return cls(
            num_columns=config.actors.num_envs * config.env.num_players,
            sync_interval=config.runner.sync_interval,
            steps_per_interval=steps,
            num_policies=num_policies(config.algo, config.env.num_players),
            num_intervals=num_intervals,
            num_updates=num_intervals - lag,
            lag=lag,
        )
