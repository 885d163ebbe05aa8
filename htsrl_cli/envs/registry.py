"""The factory of environments of every kind.

Each kind has a folder, with its configuration keys (a subclass of `EnvConfig`) and its environment
class. An entry point in the group `htsrl.envs` refers to the kind's `Kind` (htsrl_cli.plugins).
`make_env` calls the factory of this `Kind` as `factory(config, index, renderer)`; the factory must
return an `Env`. Executors import this module, so it imports little.
"""

from __future__ import annotations

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plain import find_kind
from htsrl_cli.envs.base import Env
from htsrl_cli.envs.failure import FAILURES, failure
from htsrl_cli.errors import ConfigError, HtsrlError


def make_env(config: EnvConfig, index: int, renderer: str | None = None) -> Env:
    """Builds environment number `index` of a run.

    Args:
        config: the section `env`.
        index: the environment's number, from 0; -1 if it is built only to read its spec.
        renderer: one of `config.renderers` if `render` will be called; the result is then a
            `PicturedEnv`.

    Raises:
        ConfigError: the environment does not exist, needs a missing package, has unsupported
            spaces, cannot be rendered, or rejects the value of a key.
        EnvError: the environment's own code raises another exception.
    """
    key = config.label_key
    try:
        factory = find_kind("env", config.kind).load()
    except ModuleNotFoundError as error:
        remedy = f"needs the package {error.name}: {config.install_hint}"
        raise ConfigError(f"env.{key}", getattr(config, key), remedy) from error
    try:
        env: Env = factory(config, index, renderer)
    except HtsrlError:
        raise
    except FAILURES as cause:
        name = f"environment {max(index, 0)} (env.{key}={getattr(config, key)})"
        raise failure(f"{name}: its construction", cause) from cause
    return env
