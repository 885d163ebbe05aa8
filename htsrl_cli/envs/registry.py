"""Makes environments of any kind.

A kind lies in a folder of its own: its keys (a subclass of `EnvConfig`), and the environment. It is
declared by an entry point of the group `htsrl.envs`, which names a `Kind` whose factory is called
as `factory(config, index, renderer)` and returns an `Env`. Executors import this module.
"""

from __future__ import annotations

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plain import find_kind
from htsrl_cli.envs.base import Env
from htsrl_cli.errors import ConfigError


def make_env(config: EnvConfig, index: int, renderer: str | None = None) -> Env:
    """Builds environment number `index` of a run.

    Args:
        renderer: one of `config.renderers`, which makes it a `PicturedEnv`; None where `render` is
            not called.

    Raises:
        ConfigError: the environment does not exist, has spaces that are not supported, cannot be
            pictured, or its package is missing.
    """
    try:
        factory = find_kind("env", config.kind).load()
    except ModuleNotFoundError as error:
        key = config.label_key
        remedy = f"needs the package {error.name}: {config.install_hint}"
        raise ConfigError(f"env.{key}", getattr(config, key), remedy) from error
    env: Env = factory(config, index, renderer)
    return env
