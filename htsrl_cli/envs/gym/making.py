"""Construction of Gymnasium environments, and the remedies for ids and arguments that are wrong."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import warnings
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium import error
from gymnasium.envs import registration

from htsrl_cli.config.wording import atari_game, did_you_mean
from htsrl_cli.envs.gym.config import GymConfig
from htsrl_cli.errors import ConfigError
from htsrl_cli.plugins import import_here


def make(config: GymConfig) -> gymnasium.Env[Any, Any]:
    """Builds the environment `env.id`.

    Raises:
        ConfigError: the environment or its module does not exist, needs a missing package, or does
            not accept the arguments.
        Exception: the environment's own code raises it.
    """
    # The warnings of Gymnasium and of environments are hidden: if something stops a run, htsrl
    # itself reports it on one line.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = _import_module(config.id)
        try:
            if name not in gymnasium.registry and _newest(name) and not re.search(r"-v\d+$", name):
                remedy = f"name the version: {config.id.removesuffix(name)}{_newest(name)}"
                raise ConfigError("env.id", config.id, remedy)
            return gymnasium.make(
                name,
                max_episode_steps=config.max_episode_steps,
                disable_env_checker=True,
                **config.kwargs,
            )
        except (error.UnregisteredEnv, error.DeprecatedEnv) as cause:
            raise ConfigError("env.id", config.id, _remedy(config.id)) from cause
        except error.DependencyNotInstalled as cause:
            raise ConfigError("env.id", config.id, _installation(str(cause))) from cause
        except error.Error as cause:
            raise ConfigError("env.id", config.id, str(cause)) from cause
        except ModuleNotFoundError as cause:
            remedy = f"needs the package {cause.name}: pip install {cause.name}"
            raise ConfigError("env.id", config.id, remedy) from cause
        except ImportError as cause:
            # Gymnasium registers retired versions whose code has moved to another package.
            if (newest := _newest(name)) in (None, name):
                raise
            raise ConfigError("env.id", config.id, f"is retired: use {newest}") from cause
        except TypeError as cause:
            if remedy := _wrong_arguments(name, config.kwargs):
                raise ConfigError("env.kwargs", config.kwargs, remedy) from cause
            # Gymnasium raises the environment's own error again, without its place.
            raise cause.__context__ or cause from None


def _import_module(env_id: str) -> str:
    """Returns the id without the module; if `env_id` is `module:id`, first imports the module.

    The module may be in the working directory. ale-py registers the ids that begin with `ALE/`. For
    other ids `NAMESPACE/NAME`, calls the function with which a package registers this namespace: an
    entry point of the group `gymnasium.envs`, which Gymnasium 1.0 no longer reads.
    """
    module, colon, name = env_id.rpartition(":")
    if not colon:
        namespace, slash, _ = env_id.partition("/")
        if namespace == "ALE":
            importlib.import_module("ale_py")
        elif slash and env_id not in gymnasium.registry:
            for point in entry_points(group="gymnasium.envs", name=namespace):
                point.load()()
        return env_id
    if "/" in module or module.startswith(".") or module.endswith(".py"):
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError("env.id", env_id, f"name the module as in Python: {dotted}:{name}")
    if not all(part.isidentifier() for part in module.split(".")) or not name:
        raise ConfigError("env.id", env_id, "must be an id, or MODULE:ID with a module's name")
    try:
        import_here(module)
    except ModuleNotFoundError as cause:
        remedy = f"there is no module {module}: install it, or run in the folder that holds it"
        if not f"{module}.".startswith(f"{cause.name}."):
            remedy = f"module {module} needs the package {cause.name}: pip install {cause.name}"
        raise ConfigError("env.id", env_id, remedy) from cause
    finally:
        # A module that hides the right one may also fail.
        _check_origin(env_id, module.partition(".")[0])
    return name


def _check_origin(env_id: str, module: str) -> None:
    """Checks that Python imports a module from the working directory if it is there.

    Python searches its own modules and the installed packages first.

    Raises:
        ConfigError: a module of the same name hides the one in the working directory.
    """
    places = (Path(f"{module}.py"), Path(module, "__init__.py"))
    here = next((place for place in places if place.is_file()), None)
    if here is None or module not in sys.modules:
        return
    found = getattr(sys.modules[module], "__file__", None)
    if found is None or not os.path.samefile(found, here):
        where = found or "Python itself"
        remedy = (
            f"Python imports {module} from {where}, not from {here.resolve()}: rename the latter"
        )
        raise ConfigError("env.id", env_id, remedy)


def _remedy(env_id: str) -> str:
    """Returns the remedy for an id that Gymnasium does not know, or not any more."""
    module, colon, name = env_id.rpartition(":")
    newest = _newest(name)
    # Gymnasium's Blackjack is no Atari game. ale-py may have registered the ids of those.
    is_other = newest and not _is_from(gymnasium.spec(newest), "ale_py")
    game = atari_game(env_id)
    if not is_other and game and _has_rom(game):
        return f"for this game, use env=atari/{game}"
    if newest:
        return f"there is no such version: use {module}{colon}{newest}"
    if module:
        own = [spec.id for spec in gymnasium.registry.values() if _is_from(spec, module)]
        if own:
            return f"the module {module} registers {', '.join(own)}"
        return f"the module {module} registers no environment: call gymnasium.register in it"
    known = {spec_id.lower(): spec_id for spec_id in gymnasium.registry if _is_newest(spec_id)}
    (closest,) = get_close_matches(name.lower(), known, n=1, cutoff=0.0)
    return (
        f"Gymnasium has no such environment; the closest is {known[closest]} (for an environment "
        f"that a module registers, write env.id=MODULE:{name})"
    )


def _has_rom(game: str) -> bool:
    """Returns True if ale-py has the game; does not import ale-py, which would register its ids."""
    spec = find_spec("ale_py")
    if spec is None or spec.origin is None:
        return False
    return Path(spec.origin).with_name("roms").joinpath(f"{game}.bin").exists()


def _newest(name: str) -> str | None:
    """Returns the id of the newest version of an environment; None if there is none."""
    namespace, name, _ = registration.parse_env_id(name)
    version = registration.find_highest_version(namespace, name)
    return None if version is None else registration.get_env_id(namespace, name, version)


def _is_newest(env_id: str) -> bool:
    return _newest(env_id) in (None, env_id)


def _is_from(spec: registration.EnvSpec, module: str) -> bool:
    """Returns True if the class or function that builds the environment is in or below `module`."""
    entry = spec.entry_point
    source = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return f"{source.partition(':')[0]}.".startswith(f"{module}.")


def _installation(message: str) -> str:
    """Returns the remedy for a missing package, from Gymnasium's message."""
    extra = re.search(r"gymnasium\[[\w-]+\]", message)
    return f"needs a package that is not installed: pip install '{extra[0]}'" if extra else message


def _wrong_arguments(name: str, kwargs: dict[str, Any]) -> str:
    """Returns the remedy for arguments that do not fit the environment; empty if they fit."""
    spec = gymnasium.spec(name)
    entry = spec.entry_point
    creator = registration.load_env_creator(entry) if isinstance(entry, str) else entry
    assert creator is not None
    given = spec.kwargs | kwargs
    parameters = inspect.signature(creator).parameters.values()
    accepted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for word in given:
        if word not in accepted and not takes_any:
            known = ", ".join(accepted) or "none"
            return f"{name} has no argument {word}{did_you_mean(word, accepted)}; it has: {known}"
    missing = [
        p.name
        for p in parameters
        if p.name in accepted and p.default is p.empty and p.name not in given
    ]
    words = " ".join(f"+env.kwargs.{word}=VALUE" for word in missing)
    return f"{name} needs more arguments: {words}" if words else ""
