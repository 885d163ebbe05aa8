"""Action distributions: samples, most likely actions, log-probabilities and entropies.

In shapes, N is the number of rows, D is the number of action dimensions and P is the number of
distribution parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from htsrl_cli.envs.base import ActionSpec


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
    if actions.kind == "gaussian":
        mean, log_std = params.chunk(2, dim=1)
        action = mean + log_std.exp() * noise
        return action, _gaussian_log_prob(mean, log_std, action)
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
        params: distribution parameters [N, P].
        noise: ignored; present so that the signature equals that of `sample`.
    """
    if actions.kind == "gaussian":
        chosen = params.chunk(2, dim=1)[0]
    else:
        parts = torch.split(params, list(actions.sizes), dim=1)
        chosen = torch.stack([logits.argmax(dim=1) for logits in parts], dim=1)
    return chosen, log_prob_entropy(actions, params, chosen)[0]


def log_prob_entropy(actions: ActionSpec, params: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log-probabilities [N] of chosen actions and the distributions' entropies [N].

    Args:
        params: distribution parameters [N, P].
        chosen: actions [N, D].
    """
    if actions.kind == "gaussian":
        mean, log_std = params.chunk(2, dim=1)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=1)
        return _gaussian_log_prob(mean, log_std, chosen), entropy
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


def _gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    z = (action - mean) * torch.exp(-log_std)
    return (-0.5 * z * z - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=1)
