"""Ratios of probabilities under policy lag, and the metrics of an update that describe its slot."""

from __future__ import annotations

from torch import Tensor

# Ratios of probabilities are limited to e^20, so that they and their squares are finite.
_MAX_LOG_RATIO = 20.0


def explained_variance(returns: Tensor, values: Tensor) -> float:
    """Returns 1 - Var(returns - values) / Var(returns).

    The result is 1 for perfect values. It is 0 for constant values, and if all returns are equal.
    """
    variance = float(returns.var(correction=0))
    residual = float((returns - values).var(correction=0))
    return 1 - residual / variance if variance else 0.0


def ratios_of(log_ratios: Tensor) -> Tensor:
    """Returns ratios of probabilities from their logarithms."""
    return log_ratios.clamp(max=_MAX_LOG_RATIO).exp()


def lag_metrics(log_ratios: Tensor, max_weight: float) -> dict[str, float]:
    """Returns metrics of the importance weights by name; see `htsrl_cli.tracking.metric_names`."""
    ratios = ratios_of(log_ratios)
    weights = ratios.clamp(max=max_weight)
    size = weights.sum() ** 2 / (weights**2).sum() / weights.numel()
    return {
        "lag/kl": float((ratios - 1 - log_ratios).mean()),
        "lag/effective_sample_size": float(size),
        "lag/max_weight": float(ratios.max()),
        "lag/truncated_fraction": float((ratios > max_weight).float().mean()),
    }
