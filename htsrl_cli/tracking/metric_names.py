"""The registry of metrics, the type of a line, and metric names that several modules use.

`METRICS` describes every metric that a line of `metrics.jsonl` can contain. TensorBoard and other
trackers show the same metrics. The reference page of the metrics is generated from this registry,
and a test compares the registry with the lines of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The values of one line of `metrics.jsonl`, by name; None if a metric has no value.
Line = dict[str, float | None]

RECENT_EPISODES = 100
RECENT_RETURN = f"episode/return_mean_{RECENT_EPISODES}"
EVAL_RETURN = "eval/return_mean"
FINAL_METRIC = "eval/final_metric"
# The names that a line uses for the fields of `Episode`, in the order of the fields.
EPISODE_FIGURES = ("return", "training_return", "length")


@dataclass(frozen=True)
class Metric:
    """The description of a metric, in Markdown.

    Attributes:
        unit: unit of the value.
        meaning: definition, in a sentence or two.
        good: what a good value looks like, and what to do about a bad value; empty if no value is
            better than another.
    """

    unit: str
    meaning: str
    good: str = ""


# In names, TARGET stands for an entry of `eval.targets`. PART stands for a part of the loss that an
# algorithm from another package returns.
METRICS: Mapping[str, Metric] = {
    "env_steps": Metric(
        "env steps",
        "Env steps of all environments since the run began, counted at the barrier at which the "
        "line was written. On the line of an evaluated policy: counted at the barrier that "
        "published the policy.",
        "The x axis of all other metrics.",
    ),
    "episode/count": Metric(
        "episodes",
        "Number of episodes that ended since the previous line. The means, minima and maxima "
        "below are over these episodes, except for `episode/return_mean_100`. They are `null` if "
        "no episode ended.",
        "More than 0. If it is often 0, raise `log.interval`.",
    ),
    "episode/return_mean": Metric(
        "score",
        "Mean raw return. The raw return is the sum of the environment's own rewards over a whole "
        "episode, before clipping or shaping.",
        "Rises as the policy improves. It is noisy if few episodes ended; "
        "`episode/return_mean_100` is smoother.",
    ),
    "episode/return_min": Metric(
        "score",
        "Lowest raw return of an episode.",
        "Rises. If only `episode/return_mean` rises, the policy still fails in some episodes.",
    ),
    "episode/return_max": Metric(
        "score",
        "Highest raw return of an episode.",
        "Rises. It shows the best result of the current policy.",
    ),
    "episode/training_return_mean": Metric(
        "reward",
        "Mean training return. The training return is the sum, over a whole episode, of the "
        "rewards that the learner trains on: clipped for Atari, shaped for football. With several "
        "players, it is the mean over the players.",
        "Rises together with `episode/return_mean`. If only the training return rises, the "
        "training reward does not match the score.",
    ),
    "episode/training_return_min": Metric("reward", "Lowest training return of an episode."),
    "episode/training_return_max": Metric("reward", "Highest training return of an episode."),
    "episode/length_mean": Metric(
        "env steps",
        "Mean length of an episode.",
        "Depends on the task: it rises if survival earns rewards, and falls if the policy learns "
        "to finish sooner.",
    ),
    "episode/length_min": Metric("env steps", "Length of the shortest episode."),
    "episode/length_max": Metric(
        "env steps",
        "Length of the longest episode.",
        "If the value never changes, it is probably the time limit of an episode.",
    ),
    RECENT_RETURN: Metric(
        "score",
        f"Mean raw return of the last {RECENT_EPISODES} episodes, including episodes that ended "
        "before the previous line. If no policies are evaluated (`eval.interval=0`), it is the "
        "`metric` of the run: `summary.json` reports it, the best checkpoint is chosen by it, and "
        "searches maximize it.",
        "Rises. Look at this curve first.",
    ),
    "episode/total": Metric("episodes", "Number of episodes that ended since the run began."),
    "loss/policy": Metric(
        "advantage",
        "Policy part of the loss. PPO: the negative clipped surrogate objective. A2C: minus the "
        "mean of log-probability times advantage.",
        "Fluctuates around a small value. Its level does not measure progress.",
    ),
    "loss/value": Metric(
        "squared return",
        "Value part of the loss, before it is multiplied by `algo.value_coef`. A2C: the mean "
        "squared error of the value estimates. PPO: half of this error. With "
        "`algo.clip_value_loss=true`, each squared error is the larger of two: that of the value "
        "estimate and that of the clipped value estimate.",
        "Falls, but rises again when returns grow. `loss/explained_variance` is easier to "
        "interpret.",
    ),
    "loss/entropy": Metric(
        "nats",
        "Mean entropy of the policy's action distribution. The entropy of a Gaussian policy can "
        "be negative.",
        "Starts near ln(number of actions) if actions are categorical, and falls slowly. If it "
        "suddenly falls to 0, the policy has collapsed: raise `algo.entropy_coef` or lower "
        "`algo.learning_rate`.",
    ),
    "loss/kl": Metric(
        "nats",
        "PPO only: approximate KL divergence from the old policy to the current policy, computed "
        "as the mean of ratio - 1 - log(ratio) (`approx_kl` in other libraries). With "
        "`algo.correction=none`, the old policy is the behavior policy, which collected the "
        "rollout. With other corrections, it is the policy at the start of the update. With "
        "`runner=hts` and `runner=serial`, the behavior policy is one update older, so the "
        "divergence from the behavior policy also includes the change of the previous update.",
        "Small and steady, often between 0.001 and 0.02. If it grows, updates are too large: "
        "lower `algo.learning_rate` or `algo.update_epochs`.",
    ),
    "loss/clip_fraction": Metric(
        "fraction",
        "PPO only: fraction of the probability ratios that are outside 1 ± `algo.clip_coef`.",
        "Above 0 and well below 0.5. If it is always 0, updates hardly change the policy. If it "
        "is high, updates are too large: see `loss/kl`.",
    ),
    "loss/explained_variance": Metric(
        "fraction",
        "1 - Var(returns - values) / Var(returns) of a rollout: the fraction of the variance of "
        "the returns that the value estimates explain.",
        "Rises towards 1. At 0, the value estimates are no better than a constant. Below 0, they "
        "are worse.",
    ),
    "loss/PART": Metric(
        "set by the algorithm",
        "A part of the loss of an algorithm from another package. PART stands for the name that "
        "the algorithm gives to this part.",
    ),
    "learner/grad_norm": Metric(
        "L2 norm",
        "Norm of a minibatch's gradient before it is clipped to `algo.max_grad_norm`, averaged "
        "over minibatches and, with `algo.policies=independent`, over the players' policies.",
        "Steady. A growing norm often precedes a loss that is NaN or infinite, which ends the run.",
    ),
    "learner/learning_rate": Metric(
        "no unit",
        "Learning rate of the updates.",
        "Constant, or falling linearly to 0 with `algo.anneal_learning_rate=true`.",
    ),
    "learner/lag": Metric(
        "updates",
        "Policy lag: the version of the parameters at the start of an update, minus the version "
        "that chose the actions from which the update learns; averaged over the update's rows.",
        "Always 1 with `runner=hts` and `runner=serial`, always 0 with `runner=sync`. With "
        "`runner=async`, it depends on timing.",
    ),
    "learner/max_lag": Metric(
        "updates",
        "`runner=async` only: the largest policy lag of a row. TensorBoard also shows the policy "
        "lags of all rows as the histogram `learner/lags`.",
        "At most a few updates. It is limited by `runner.spare_unrolls` and `actors.num_envs`.",
    ),
    "lag/first_clip_fraction": Metric(
        "fraction",
        "PPO only: `loss/clip_fraction` of the first minibatch of an update, before any optimizer "
        "step. With `algo.correction=none`, it shows the effect of policy lag.",
        "0 or close to 0. If it is high with `algo.correction=none`, try another correction.",
    ),
    "lag/kl": Metric(
        "nats",
        "PPO with policy lag and `algo.correction` other than `none`: approximate KL divergence "
        "from the behavior policy to the policy at the start of the update, computed as in "
        "`loss/kl`.",
        "Small and steady. If it grows, updates are too large: lower `algo.learning_rate` or "
        "`algo.update_epochs`.",
    ),
    "lag/effective_sample_size": Metric(
        "fraction",
        "Effective sample size of the importance weights, (Σw)² / Σw², divided by the number of "
        "rows. A weight w is the action's probability at the start of the update, divided by its "
        "probability under the behavior policy, and at most `algo.max_weight`. With "
        "`algo.correction=proximal`, the loss has no weights, and w has no limit.",
        "Close to 1. If it is far below, the update learns from few of its rows.",
    ),
    "lag/max_weight": Metric(
        "no unit",
        "Largest importance weight of a rollout, before it is limited to `algo.max_weight`.",
        "A little above 1.",
    ),
    "lag/truncated_fraction": Metric(
        "fraction",
        "`algo.correction=decoupled` and `vtrace`: fraction of the importance weights that are "
        "limited to `algo.max_weight`.",
        "Close to 0.",
    ),
    "eval/episodes": Metric(
        "episodes",
        "Number of episodes that the evaluated policy played (`eval.episodes`).",
    ),
    EVAL_RETURN: Metric(
        "score",
        "Mean raw return of the evaluated policy's episodes.",
        "Rises. It is noisier than `eval/final_metric`.",
    ),
    "eval/training_return_mean": Metric(
        "reward",
        "Mean training return of the evaluated policy's episodes (see "
        "`episode/training_return_mean`).",
    ),
    "eval/length_mean": Metric("env steps", "Mean length of the evaluated policy's episodes."),
    "eval/return_min": Metric("score", "Lowest raw return of the evaluated policy's episodes."),
    "eval/return_max": Metric("score", "Highest raw return of the evaluated policy's episodes."),
    FINAL_METRIC: Metric(
        "score",
        "Mean raw return over all episodes of the last ten evaluated policies, or of all evaluated "
        "policies if there are fewer than ten. It is the `metric` of the run: `summary.json` "
        "reports it, the best checkpoint is chosen by it, and searches maximize it.",
        "Rises. Compare runs by this metric.",
    ),
    "eval/env_steps_to_TARGET": Metric(
        "env steps",
        "`env_steps` on the first line whose `eval/final_metric` reached the target; `null` before "
        "that line.",
        "The lower, the better: the run needed less experience.",
    ),
    "time/seconds": Metric(
        "s",
        "Wall-clock time of the training. If the run was resumed, this includes the time of "
        "earlier processes up to the checkpoint from which the run was resumed. On the line of an "
        "evaluated policy: the time at the barrier that published the policy.",
    ),
    "time/env_steps_per_second": Metric(
        "env steps / s",
        "Rate since the previous line.",
        "High and steady. `htsrl bench` shows the rate that the machine could reach.",
    ),
    "time/env_steps_per_second_since_start": Metric(
        "env steps / s",
        "Rate since this process began to train.",
        "High. It is smoother than `time/env_steps_per_second`.",
    ),
    "time/executors_busy": Metric(
        "fraction",
        "Fraction of the time in which an executor steps environments, averaged over executors.",
        "Near 1 if environments are the bottleneck: more cores then help.",
    ),
    "time/executors_waiting": Metric(
        "fraction",
        "Fraction of the time in which an executor waits, averaged over executors. It waits for "
        "actions and, after the slot is full, for the learner.",
        "With `runner=hts`: low. If it is high and `time/learner_busy` is high, too, the learner "
        "is the bottleneck.",
    ),
    "time/actors_busy": Metric(
        "fraction",
        "Fraction of the time in which an actor runs inference, averaged over actors.",
        "Below 1. If it is near 1, inference is the bottleneck: raise `actors.num_actors` or "
        "`actors.inference_batch`.",
    ),
    "time/actors_waiting": Metric(
        "fraction",
        "Fraction of the time in which an actor waits, averaged over actors. It waits for "
        "requests and, after the slot is full, for the learner.",
        "High if inference is not the bottleneck.",
    ),
    "time/learner_busy": Metric(
        "fraction",
        "Fraction of the time in which the learner makes updates.",
        "With `runner=hts`: close to `time/collecting`, so that learning and collecting hardly "
        "wait for each other. If `time/learner_busy` is near 1 and `time/collecting` is low, the "
        "learner is the bottleneck.",
    ),
    "time/learner_waiting": Metric(
        "fraction",
        "Fraction of the time in which the learner waits for a full slot.",
        "With `runner=hts`: low. If it is high, environments or inference are the bottleneck.",
    ),
    "time/collecting": Metric(
        "fraction",
        "Fraction of the time in which a slot is being filled: from a barrier until the slot is "
        "full. With `runner=serial`, this includes the time of the update.",
        "With `runner=hts`: close to `time/learner_busy`. If it is much lower than "
        "`time/learner_busy`, the learner is the bottleneck.",
    ),
    "time/barrier": Metric(
        "fraction",
        "Fraction of the time in which the run is at a barrier, where it publishes parameters, "
        "writes metrics and saves checkpoints.",
        "Low. If it is high, raise `runner.sync_interval`, `log.interval` or "
        "`checkpoint.interval`.",
    ),
    "time/exchange": Metric(
        "fraction",
        "With several ranks (`torchrun`): fraction of the time in which the learner exchanges "
        "gradients with other ranks, or waits for them to do so. It is part of "
        "`time/learner_busy`.",
        "Low. If it is high and `time/learner_busy` is near 1, the network or the slowest rank is "
        "the bottleneck.",
    ),
    "time/inference_passes_per_second": Metric(
        "passes / s",
        "Number of forward passes of all actors per second. To get the mean number of observations "
        "in a pass, multiply `time/env_steps_per_second` by the number of players of an "
        "environment, and divide by this rate.",
        "Low compared with `time/env_steps_per_second`: each pass then serves many environments.",
    ),
    "time/seconds_to_TARGET": Metric(
        "s",
        "`time/seconds` on the first line whose `eval/final_metric` reached the target; `null` "
        "before that line.",
        "The lower, the better: the run needed less time.",
    ),
}
