"""The choice of tuned settings for an environment: what `tuned=auto` stands for.

An option of the group `tuned` is a YAML file with keys of any section. Its folder is named after an
algorithm, and its name is a Gymnasium id (`tuned/ppo/CartPole-v1`) or a form of observations
(`tuned/ppo/vector`). The defaults of an algorithm itself are settings for Atari.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from htsrl_cli.config.auto import AUTO
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plain import build_section
from htsrl_cli.envs.base import is_large_image
from htsrl_cli.errors import ConfigError, HtsrlError

GROUP = "tuned"
# The kinds of environments that this process has built: building one may take long.
_kinds: dict[str, str] = {}


def choose(cfg: DictConfig, choices: Mapping[str, str], options: Sequence[str]) -> str | None:
    """Returns the option of the group `tuned` that `auto` stands for; None if there is none.

    There is none if the user chose an experiment or another option, if the kind of environment has
    no tuned settings, or if the environment cannot be built, which is reported elsewhere.

    Args:
        cfg: the composed configuration.
        choices: the chosen option of each group.
        options: the options of the group `tuned`.
    """
    if choices.get(GROUP) != AUTO or choices.get("experiment"):
        return None
    try:
        section: Any = OmegaConf.to_container(cfg.env, resolve=True, throw_on_missing=True)
        env: EnvConfig = build_section("env", section)
    except (HtsrlError, OmegaConfBaseException):
        return None
    if not env.has_tuned_settings:
        return None
    algo = cfg.algo.name
    own = f"{algo}/{str(getattr(env, env.label_key)).rpartition(':')[2]}"
    if own in options:
        return own
    if repr(env) not in _kinds:
        _kinds[repr(env)] = _kind(env)
    name = f"{algo}/{_kinds[repr(env)]}"
    return name if name in options else None


def check(cfg: DictConfig, choices: Mapping[str, str]) -> None:
    """Checks that the option of this group is one for the algorithm.

    Raises:
        ConfigError: it is for another algorithm.
    """
    option = choices.get(GROUP, "")
    algo, slash, _ = option.partition("/")
    if slash and algo != cfg.algo.name:
        raise ConfigError(
            GROUP, option, f"is for algo={algo}: choose another option or algo={algo}"
        )


def words(cfg: DictConfig) -> list[str]:
    """Returns the override that chooses the same option of this group as `cfg`, if `cfg` has it."""
    option = cfg.hydra.runtime.choices.get(GROUP)
    return [] if option is None else [f"{GROUP}={option}"]


def _kind(env: EnvConfig) -> str:
    """Returns `image` or `vector`; an empty string if `env` cannot be built."""
    from htsrl_cli.envs.registry import make_env

    try:
        with closing(make_env(env, 0)) as built:
            return "image" if is_large_image(built.env_spec.obs_shape) else "vector"
    except HtsrlError:
        return ""
