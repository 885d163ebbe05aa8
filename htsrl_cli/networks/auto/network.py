"""The choice between the Nature CNN and MLPs, by the shape of the observations."""

from __future__ import annotations

from htsrl_cli.envs.base import EnvSpec, is_large_image
from htsrl_cli.networks.auto.config import AutoConfig
from htsrl_cli.networks.mlp.network import Mlp, make_mlps
from htsrl_cli.networks.nature_cnn.network import NatureCnn


def make_auto(config: AutoConfig, spec: EnvSpec) -> NatureCnn | Mlp | tuple[Mlp, Mlp]:
    """Builds the Nature CNN if observations are large images, and MLPs otherwise."""
    if is_large_image(spec.obs_shape):
        return NatureCnn(spec, config.linear_kernel)
    return make_mlps(config, spec)
