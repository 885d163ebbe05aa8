"""The registry of metrics, the type of a line, and the names that more than one module uses.

`METRICS` describes every name that a line of `metrics.jsonl` can have, and with it every scalar of
TensorBoard and other trackers. The reference of the documentation is made from it, and a test
compares it with the lines of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# By name the values of one line of `metrics.jsonl`; None where there is none.
Line = dict[str, float | None]

RECENT_EPISODES = 100
RECENT_RETURN = f"episode/return_mean_{RECENT_EPISODES}"
EVAL_RETURN = "eval/return_mean"
FINAL_METRIC = "eval/final_metric"
# The names that the fields of an `Episode` have in a line.
EPISODE_FIGURES = ("return", "training_return", "length")


@dataclass(frozen=True)
class Metric:
    """The description of a metric, in Markdown.

    Attributes:
        unit: unit of the value.
        meaning: definition, in a sentence or two.
        good: what to look for; empty where any value is as good as another.
    """

    unit: str
    meaning: str
    good: str = ""


# In names, TARGET stands for an entry of `eval.targets`, and PART for a part of the loss of an
# algorithm that another package brings.
METRICS: Mapping[str, Metric] = {
    "env_steps": Metric(
        "env steps",
        "Total env steps of all environments since the run began, up to the barrier at which the "
        "line was written. "
        "On the line of an evaluated policy: at the barrier that published the policy.",
        "The x axis of all other metrics.",
    ),
    "episode/count": Metric(
        "episodes",
        "Episodes that ended since the previous line. The means, minima and maxima below are "
        "over these episodes, and `null` where there are none.",
        "More than 0. Otherwise raise `log.interval`.",
    ),
    "episode/return_mean": Metric(
        "score",
        "Mean raw return: the sum of the environment's own rewards over a whole episode, before "
        "clipping or shaping.",
        "Rises. Few episodes make it noisy: prefer `episode/return_mean_100`.",
    ),
    "episode/return_min": Metric("score", "Lowest raw return."),
    "episode/return_max": Metric("score", "Highest raw return."),
    "episode/training_return_mean": Metric(
        "reward",
        "Mean sum of the rewards that the learner trains on: clipped for Atari, shaped for "
        "football. With several players, their mean.",
        "Rises with `episode/return_mean`. If it rises alone, the training reward misleads.",
    ),
    "episode/training_return_min": Metric("reward", "Lowest sum of training rewards."),
    "episode/training_return_max": Metric("reward", "Highest sum of training rewards."),
    "episode/length_mean": Metric(
        "env steps",
        "Mean length of an episode. For Atari and football: of a whole game.",
        "Depends on the task: longer where survival pays, shorter where speed does.",
    ),
    "episode/length_min": Metric("env steps", "Length of the shortest episode."),
    "episode/length_max": Metric(
        "env steps",
        "Length of the longest episode.",
        "A constant value often is the time limit.",
    ),
    RECENT_RETURN: Metric(
        "score",
        f"Mean raw return of the last {RECENT_EPISODES} episodes, including those that ended "
        "before the previous line. Without `eval.interval`, it is the `metric` that "
        "`summary.json` reports, that selects the best checkpoint, and that sweeps optimize.",
        "Rises. The curve to look at first.",
    ),
    "episode/total": Metric("episodes", "Episodes that ended since the run began."),
    "loss/policy": Metric(
        "advantage",
        "Policy part of the loss. PPO: the negative clipped surrogate. A2C: minus the mean of "
        "log-probability times advantage.",
        "Noise around a small value. Its level does not measure progress.",
    ),
    "loss/value": Metric(
        "squared return",
        "Value part of the loss, before `algo.value_coef`: the mean squared error of the value "
        "estimates. PPO: half of it.",
        "Falls, and rises again when returns grow. `loss/explained_variance` is easier to read.",
    ),
    "loss/entropy": Metric(
        "nats",
        "Mean entropy of the policy's action distribution. That of a Gaussian policy may be "
        "negative.",
        "Begins near ln(number of actions) and falls slowly. A sudden fall to 0 is a collapsed "
        "policy: raise `algo.entropy_coef` or lower `algo.learning_rate`.",
    ),
    "loss/kl": Metric(
        "nats",
        "PPO: approximate KL divergence from the old policy to the one that is updated, the mean "
        "of ratio - 1 - log ratio (`approx_kl` in other libraries). Without `algo.reevaluate`, the "
        "old policy is the behavior policy, so under policy lag the change by the previous update "
        "is included.",
        "Small and steady, often between 0.001 and 0.02. If it grows, updates go too far: lower "
        "`algo.learning_rate` or `algo.update_epochs`.",
    ),
    "loss/clip_fraction": Metric(
        "fraction",
        "PPO: fraction of probability ratios outside 1 ± `algo.clip_coef`.",
        "Above 0 and well below one half. 0 all the time: updates hardly move the policy. "
        "High: see `loss/kl`.",
    ),
    "loss/explained_variance": Metric(
        "fraction",
        "1 - Var(returns - values) / Var(returns) of a rollout: how much of the variance of the "
        "returns the value estimates explain.",
        "Rises towards 1. 0 is as good as a constant, less than 0 is worse.",
    ),
    "loss/PART": Metric(
        "the algorithm's",
        "Any other part of the loss that an algorithm of another package returns.",
    ),
    "learner/grad_norm": Metric(
        "norm",
        "Norm of a minibatch's gradient before it is clipped to `algo.max_grad_norm`, averaged "
        "over minibatches and policies.",
        "Steady. Growing norms often precede a loss that is not finite, which ends the run.",
    ),
    "learner/learning_rate": Metric(
        "1",
        "Learning rate of the updates.",
        "Constant, or falling linearly to 0 with `algo.anneal_learning_rate=true`.",
    ),
    "learner/lag": Metric(
        "updates",
        "Policy lag: version of the parameters that an update starts from, minus the version that "
        "collected its rollout.",
        "Always 1 with `runner=hts` and `serial`, always 0 with `sync`.",
    ),
    "eval/episodes": Metric("episodes", "Episodes that the policy played (`eval.episodes`)."),
    EVAL_RETURN: Metric(
        "score",
        "Mean raw return of the policy's episodes.",
        "Rises. Noisier than `eval/final_metric`.",
    ),
    "eval/training_return_mean": Metric("reward", "Mean sum of the training rewards."),
    "eval/length_mean": Metric("env steps", "Mean length of the episodes."),
    "eval/return_min": Metric("score", "Lowest raw return."),
    "eval/return_max": Metric("score", "Highest raw return."),
    FINAL_METRIC: Metric(
        "score",
        "Mean raw return over all episodes of the last ten evaluated policies, fewer at the "
        "beginning. It is the `metric` that `summary.json` reports, that selects the best "
        "checkpoint, and that sweeps optimize.",
        "Rises. The measure to compare runs by.",
    ),
    "eval/env_steps_to_TARGET": Metric(
        "env steps",
        "Env steps of the policy with which `eval/final_metric` first reached the target; `null` "
        "before.",
        "Low.",
    ),
    "time/seconds": Metric(
        "s",
        "Wall-clock time of the training, including that of earlier processes up to the checkpoint "
        "from which they were resumed. On the line of an evaluated policy: of the training before "
        "that policy.",
    ),
    "time/env_steps_per_second": Metric(
        "env steps / s",
        "Rate since the previous line.",
        "High and steady. `htsrl bench` says what the machine could reach.",
    ),
    "time/env_steps_per_second_since_start": Metric(
        "env steps / s",
        "Rate since this process began to train.",
    ),
    "time/executors_busy": Metric(
        "fraction",
        "Fraction of the time in which an executor steps environments, averaged over executors.",
        "Near 1 where environments are the bottleneck: then more cores help.",
    ),
    "time/executors_waiting": Metric(
        "fraction",
        "Fraction of the time that executors wait for actions, or for the learner after the slot "
        "is full.",
        "Low. High with a high `time/learner_busy`: the learner is the bottleneck.",
    ),
    "time/actors_busy": Metric(
        "fraction",
        "Fraction of the time in which an actor runs inference, averaged over actors.",
        "Below 1. Near 1: add actors or raise `actors.inference_batch`.",
    ),
    "time/actors_waiting": Metric(
        "fraction",
        "Fraction of the time that actors wait for requests, or for the learner after the slot is "
        "full.",
    ),
    "time/learner_busy": Metric(
        "fraction",
        "Fraction of the time that the learner spends on updates.",
        "Close to `time/collecting`: then neither side waits long for the other. Near 1 with a low "
        "`time/collecting`: the learner is the bottleneck.",
    ),
    "time/learner_waiting": Metric(
        "fraction",
        "Fraction of the time that the learner waits for the slot to be filled.",
        "Low. High: environments or inference are the bottleneck.",
    ),
    "time/collecting": Metric(
        "fraction",
        "Fraction of the wall-clock time that passes between a barrier and the moment at which the "
        "slot is full.",
        "Close to `time/learner_busy`. Lower: the learner is the bottleneck.",
    ),
    "time/barrier": Metric(
        "fraction",
        "Fraction of the time spent at barriers: publishing parameters, writing metrics and taking "
        "checkpoints.",
        "Low. Otherwise raise `runner.sync_interval`, `log.interval` or `checkpoint.interval`.",
    ),
    "time/inference_passes_per_second": Metric(
        "1 / s",
        "Forward passes of all actors. The mean number of rows in a pass is the number of "
        "observations per second divided by this rate.",
        "The lower at a given rate of env steps, the fuller the passes.",
    ),
    "time/seconds_to_TARGET": Metric(
        "s",
        "`time/seconds` of the policy with which `eval/final_metric` first reached the target; "
        "`null` before.",
        "Low.",
    ),
}
