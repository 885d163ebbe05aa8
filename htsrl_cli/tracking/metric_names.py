"""The names of metrics that more than one module uses, and the type of a line of metrics."""

from __future__ import annotations

# By name the values of one line of `metrics.jsonl`; None where there is none.
Line = dict[str, float | None]

RECENT_EPISODES = 100
RECENT_RETURN = f"episode/return_mean_{RECENT_EPISODES}"
EVAL_RETURN = "eval/return_mean"
FINAL_METRIC = "eval/final_metric"
# The names that the fields of an `Episode` have in a line.
EPISODE_FIGURES = ("return", "training_return", "length")
