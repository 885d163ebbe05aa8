"""A network that makes updates take random times: it sleeps where gradients are computed.

It gives the learner of a measurement the exponential service times that Claim 2 of the HTS-RL paper
assumes. Name it with `network.name=scripts.sleeping_network:SleepingNetwork`.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from htsrl_cli.envs.base import EnvSpec

NUM_FEATURES = 8


class SleepingNetwork(nn.Module):
    """One linear layer, [N, *obs_shape] to [N, 8].

    Args:
        config: the section `network`; its `kwargs.mean_ms` is the mean time of a forward pass with
            gradients, in milliseconds. Times follow an exponential distribution.
    """

    def __init__(self, config: Any, spec: EnvSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(spec.obs_shape), NUM_FEATURES)
        self.num_features = NUM_FEATURES
        self._mean_s = config.kwargs["mean_ms"] / 1000
        self._rng = np.random.default_rng(0)

    def forward(self, obs: Tensor) -> Tensor:
        """Returns the features; sleeps if gradients are computed."""
        if torch.is_grad_enabled():
            time.sleep(self._rng.exponential(self._mean_s))
        features: Tensor = self.layer(obs.flatten(1).to(self.layer.weight.dtype))
        return features
