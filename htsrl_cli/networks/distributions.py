"""Action distributions: samples, most likely actions, log-probabilities and entropies.

In shapes, N is the number of rows, D is the number of action dimensions and P is the number of
distribution parameters. Squashed actions are given and returned as they are stored: before tanh.
Their log-probabilities and entropies are those of the actions after tanh, within their bounds.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from htsrl_cli.config.kinds import AlgoConfig
from htsrl_cli.envs.base import ActionSpec
from htsrl_cli.envs.squash import squasher


def policy_actions(actions: ActionSpec, algo: AlgoConfig) -> ActionSpec:
    """Returns the form of a policy's actions, given that of the environment's actions.

    It is `squashed` instead of `gaussian` with `algo.squash=tanh`.

    Raises:
        ConfigError: the environment's actions cannot be squashed.
    """
    return actions if squasher(actions, algo) is None else replace(actions, kind="squashed")


def mask_logits(params: Tensor, masks: Tensor | None) -> Tensor:
    """Returns logits with which masked actions have probability 0 and no gradient.

    Masked logits get the lowest finite number: with -inf, entropies would be NaN.

    Args:
        params: logits [N, P].
        masks: bool [N, P], True for allowed actions; None returns `params`.
    """
    if masks is None:
        return params
    return params.masked_fill(~masks, torch.finfo(params.dtype).min)


def sample(actions: ActionSpec, params: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Turns noise into actions [N, D] and their log-probabilities [N].

    Categorical actions are sampled by inverting the cumulative distribution at a uniform random
    number. Gaussian actions are scaled and shifted standard normal numbers. The results of a row
    depend only on the inputs of that row.

    Args:
        params: distribution parameters [N, P]: logits for categorical actions, or means and then
            log standard deviations for Gaussian actions.
        noise: float32 [N, D]; uniform in [0, 1) for categorical actions, standard normal for
            Gaussian actions.
    """
    if actions.kind != "categorical":
        mean, log_std = params.chunk(2, dim=1)
        action = mean + log_std.exp() * noise
        return action, _log_prob(actions, mean, log_std, action)
    chosen, log_probs = [], torch.zeros_like(noise[:, 0])
    for d, logits in enumerate(torch.split(params, list(actions.sizes), dim=1)):
        log_p = logits.log_softmax(dim=1)
        cumulative = _cumulative(log_p.exp())
        # Rounding may leave the last sum below 1, so the uniform number is scaled by this sum.
        threshold = noise[:, d : d + 1] * cumulative[:, -1:]
        choice = (cumulative <= threshold).sum(dim=1, keepdim=True).clamp(max=logits.shape[1] - 1)
        chosen.append(choice)
        log_probs = log_probs + log_p.gather(1, choice).squeeze(1)
    return torch.cat(chosen, dim=1), log_probs


def _cumulative(probabilities: Tensor) -> Tensor:
    """Returns the cumulative sums of each row of `probabilities` [N, n].

    On CUDA, torch has no deterministic `cumsum`, so `running_sums` is used instead.
    """
    on_cuda = probabilities.device.type == "cuda"
    return running_sums(probabilities) if on_cuda else probabilities.cumsum(dim=1)


def running_sums(numbers: Tensor) -> Tensor:
    """Returns the cumulative sums of each row of `numbers` [N, n], added from left to right.

    In another order, rounding could make a sum smaller than the sum before it, or larger although
    the added number is 0. An action of probability 0 could then be drawn.
    """
    sums = list(numbers.unbind(dim=1))
    for column in range(1, len(sums)):
        sums[column] = sums[column - 1] + sums[column]
    return torch.stack(sums, dim=1)


def most_likely(actions: ActionSpec, params: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the most likely actions [N, D] and their log-probabilities [N].

    Args:
        params: distribution parameters [N, P]; see `sample`.
        noise: ignored; present so that the signature equals that of `sample`.
    """
    if actions.kind != "categorical":
        chosen = params.chunk(2, dim=1)[0]
    else:
        parts = torch.split(params, list(actions.sizes), dim=1)
        chosen = torch.stack([logits.argmax(dim=1) for logits in parts], dim=1)
    return chosen, log_prob_entropy(actions, params, chosen)[0]


def log_prob_entropy(
    actions: ActionSpec, params: Tensor, chosen: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the log-probabilities [N] of chosen actions and the distributions' entropies [N].

    The entropy of a squashed Gaussian has no closed form. It is that of the Gaussian plus the
    logarithm of tanh's slope, which is averaged over the Gaussian: one sample, drawn from `noise`
    with the current parameters, estimates the average and has a gradient (as in Brax and TorchRL).

    Args:
        params: distribution parameters [N, P].
        chosen: actions [N, D].
        noise: standard normal [N, D], for squashed actions; None takes the most likely action in
            place of a sample.
    """
    if actions.kind != "categorical":
        mean, log_std = params.chunk(2, dim=1)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=1)
        if actions.kind == "squashed":
            drawn = mean if noise is None else mean + log_std.exp() * noise
            entropy = entropy + _log_slope(actions, drawn)
        return _log_prob(actions, mean, log_std, chosen), entropy
    log_probs = torch.zeros_like(params[:, 0])
    entropy = torch.zeros_like(params[:, 0])
    for d, logits in enumerate(torch.split(params, list(actions.sizes), dim=1)):
        log_p = logits.log_softmax(dim=1)
        # `gather` is not used, because its gradient is a `scatter_add`, which a GPU can compute
        # deterministically only by sorting.
        others = chosen[:, d : d + 1] != torch.arange(logits.shape[1], device=logits.device)
        log_probs = log_probs + log_p.masked_fill(others, 0.0).sum(dim=1)
        entropy = entropy - (log_p.exp() * log_p).sum(dim=1)
    return log_probs, entropy


def _log_prob(actions: ActionSpec, mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Returns the log-probabilities [N] of Gaussian or squashed actions [N, D]."""
    z = (action - mean) * torch.exp(-log_std)
    gaussian = (-0.5 * z * z - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=1)
    return gaussian - _log_slope(actions, action) if actions.kind == "squashed" else gaussian


def _log_slope(actions: ActionSpec, u: Tensor) -> Tensor:
    """Returns, for u [N, D], the summed logarithms [N] of the slopes of (high - low) / 2 * tanh(u).

    log(1 - tanh(u)^2) = 2 * (log 2 - u - softplus(-2 u)) has no difference of nearly equal numbers
    and no logarithm of 0, however large u is (TensorFlow Probability's `Tanh` bijector).
    """
    widths = zip(actions.low, actions.high, strict=True)
    constant = math.fsum(math.log((high - low) / 2) for low, high in widths)
    return (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(dim=1) + constant
