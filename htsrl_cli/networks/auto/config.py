"""`network=auto`: the keys of a network chosen by the shape of the observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.rules import LINEAR_KERNEL, Rules
from htsrl_cli.networks.mlp.config import MlpConfig
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class AutoConfig(MlpConfig):
    """The choice of `nature_cnn` for images of at least 36 x 36 pixels, and of `mlp` otherwise.

    Attributes:
        linear_kernel: a key of `nature_cnn`; `mlp` does not use it.
    """

    rules: ClassVar[Rules] = {"linear_kernel": LINEAR_KERNEL, **MlpConfig.rules}

    linear_kernel: str


KIND = Kind(AutoConfig, "htsrl_cli.networks.auto.network:make_auto")
