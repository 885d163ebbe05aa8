"""`network=auto`: the keys of a network chosen by the shape of the observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from htsrl_cli.config.rules import LINEAR_KERNEL, Rules
from htsrl_cli.networks.mlp.config import MlpConfig
from htsrl_cli.plugins import Kind


@dataclass(frozen=True)
class AutoConfig(MlpConfig):
    """`nature_cnn` for images of at least 36 x 36 pixels, otherwise `mlp`.

    Attributes:
        hidden_sizes: see `network=mlp`; `nature_cnn` does not use this key.
        activation: see `network=mlp`; `nature_cnn` does not use this key.
        separate_value: see `network=mlp`; `nature_cnn` does not use this key.
        linear_kernel: see `network=nature_cnn`; `mlp` does not use this key.
    """

    rules: ClassVar[Rules] = {"linear_kernel": LINEAR_KERNEL, **MlpConfig.rules}

    linear_kernel: str


KIND = Kind(AutoConfig, "htsrl_cli.networks.auto.network:make_auto")
