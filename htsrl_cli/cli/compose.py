"""Command-line overrides to validated configurations, before Hydra itself runs.

Hydra writes `.hydra/` before our function runs and answers mistakes with several lines and exit
code 1. So everything is composed here first, by Hydra's own loader, and every mistake becomes
one line that names the key, the value and the remedy. Free of torch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from htsrl_cli.config.plain import (
    CHANGES_NO_RESULT,
    build,
    config_sha256,
    did_you_mean,
    from_plain,
    shown,
    to_plain,
    unknown_key,
)
from htsrl_cli.config.rules import validate, validate_bench, validate_eval
from htsrl_cli.config.sections import BenchConfig, EvalConfig, TrainConfig
from htsrl_cli.errors import ConfigError, UsageError
from htsrl_cli.machine import fill_auto

__all__ = [
    "CHANGES_NO_RESULT",
    "Composer",
    "FolderNames",
    "config_sha256",
    "configs_dir",
    "from_plain",
    "output_dir",
    "parse_overrides",
    "resolved",
    "short_name",
    "to_bench_config",
    "to_eval_config",
    "to_plain",
    "to_train_config",
    "typed_words",
    "validate",
]

VERSION_BASE = "1.3"
# So many options of a group fit on a line.
_FEW = 8
# File systems take names of 255 bytes; a digest comes on top.
_LONGEST_NAME = 200
_PLUGINS = (
    "hydra/sweeper/optuna",
    "hydra/launcher/joblib",
    "hydra/launcher/submitit_local",
    "hydra/launcher/submitit_slurm",
)
_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


def short_name(name: str) -> str:
    """A folder's name as it is or, where it is long, its beginning and a digest of all of it."""
    data = name.encode()
    if len(data) <= _LONGEST_NAME:
        return name
    beginning = data[:_LONGEST_NAME].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(data).hexdigest()[:12]}"


OmegaConf.register_new_resolver("short_name", short_name, replace=True)


class FolderNames(Callback):
    """Makes `${short_name:...}` known to the processes of launchers, too.

    They name a job's folder before they import anything of ours. But they unpickle a sweep's
    callbacks, and that imports this module.
    """


def configs_dir() -> Path:
    """The folder of YAML files: inside an installed wheel, at the top of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Command-line words as Hydra's overrides.

    Raises:
        UsageError: a word is not of the form KEY=VALUE.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        key, equals, value = error.override.partition("=")
        if not equals:
            raise UsageError(f"{error.override}: write it as KEY=VALUE") from error
        remedy = "cannot be parsed; quote special characters, as in \"key='a b'\""
        raise ConfigError(key, value, remedy) from error


def to_train_config(cfg: DictConfig) -> TrainConfig:
    """The composed `train.yaml` as a validated configuration.

    Raises:
        ConfigError: for the first key that has to change.
    """
    config = from_plain(fill_auto(resolved(cfg)))
    validate(config)
    return config


def to_eval_config(cfg: DictConfig) -> EvalConfig:
    """The composed `eval.yaml` as a validated configuration.

    Raises:
        ConfigError: for the first key that has to change.
    """
    config = build(EvalConfig, resolved(cfg))
    validate_eval(config)
    return config


def to_bench_config(cfg: DictConfig) -> BenchConfig:
    """The section `bench` of the composed `bench.yaml`; `to_train_config` takes the rest.

    Raises:
        ConfigError: for the first key that has to change.
    """
    config = build(BenchConfig, resolved(cfg, ["bench"])["bench"], "bench.")
    validate_bench(config)
    return config


def resolved(cfg: DictConfig, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The composed values, interpolations resolved.

    Args:
        names: the sections; those of a training run if None.

    Raises:
        ConfigError: a mandatory value is missing, or an interpolation leads nowhere.
    """
    if names is None:
        names = [str(key) for key in cfg if key not in ("hydra", "resume", "bench")]
    own = OmegaConf.masked_copy(cfg, list(names))
    try:
        plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "?"
        raise ConfigError(key, "???", f"a value is needed: {key}=...") from error
    except OmegaConfBaseException as error:
        value = OmegaConf.to_container(own, resolve=False)
        raw = _look_up(value, error.full_key or "")
        raise ConfigError(error.full_key or "?", raw, _first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def typed_words(hydra: Any, kind: str) -> list[str]:
    """The overrides as they were typed, interpolations and all.

    Args:
        hydra: Hydra's own section.
        kind: `task` for ours, `hydra` for Hydra's own.
    """
    words = OmegaConf.to_container(hydra.overrides, resolve=False)
    assert isinstance(words, dict)
    return [str(word) for word in words[kind]]


def _look_up(plain: Any, key: str) -> object:
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _first_line(error: BaseException) -> str:
    """The first line of a message of Hydra or OmegaConf that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


class Composer:
    """Composes one verb's configuration as Hydra would, without running anything.

    Args:
        config_name: `train` or `eval`, the primary YAML file.
        config_dir: the user's additional folder of YAML files (`--config-dir`).
    """

    def __init__(self, config_name: str, config_dir: str | None = None) -> None:
        version.setbase(VERSION_BASE)
        setup_globals()
        self._config_name = config_name
        search_path = create_config_search_path(str(configs_dir()))
        if config_dir is not None:
            if not Path(config_dir).is_dir():
                raise ConfigError("--config-dir", config_dir, "there is no such folder")
            path = f"file://{Path(config_dir).resolve()}"
            search_path.prepend("command-line", path, anchor=SearchPathQuery(provider="schema"))
        self._loader = ConfigLoaderImpl(search_path)

    def is_multirun(self, overrides: Sequence[str]) -> bool:
        """Whether `hydra.mode` asks for a multirun."""
        return bool(self._load(overrides, RunMode.MULTIRUN).hydra.mode == RunMode.MULTIRUN)

    def job(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a single run, Hydra's own section included.

        Raises:
            UsageError: an override is malformed, or names a key or option that does not exist.
        """
        for override in parse_overrides(overrides):
            if override.is_sweep_override():
                value = override.get_value_string()
                remedy = "several values are a sweep: add -m, or quote them as one value"
                raise ConfigError(override.get_key_element(), value, remedy)
        return self._load(overrides, RunMode.RUN)

    def sweep(self, overrides: Sequence[str]) -> tuple[DictConfig, list[DictConfig]]:
        """The multirun's own configuration and that of each job.

        Jobs are known beforehand for Hydra's basic sweeper. Another sweeper chooses values as it
        goes; then the jobs are those of `_samples`.

        Raises:
            UsageError: as for `job`, in any of the jobs.
        """
        master = self._load(overrides, RunMode.MULTIRUN)
        fixed = typed_words(master.hydra, "hydra")
        jobs = [self.job([*fixed, *batch]) for batch in self._batches(master)]
        for number, job in enumerate(jobs):
            OmegaConf.set_struct(job, False)
            job.hydra.job.num = number
            job.hydra.job.id = str(number)
            OmegaConf.copy_cache(from_config=master, to_config=job)
        return master, jobs

    def group_options(self, group: str) -> list[str]:
        """Names of all options of a group, nested ones with their folder; empty for no group."""
        if not self._loader.repository.group_exists(group):
            return []
        names = self._loader.get_group_options(group, ObjectType.CONFIG)
        for folder in self._loader.get_group_options(group, ObjectType.GROUP):
            names += [f"{folder}/{name}" for name in self.group_options(f"{group}/{folder}")]
        return sorted(names)

    def _batches(self, master: DictConfig) -> list[list[str]]:
        """The overrides of each job of a multirun."""
        params = master.hydra.sweeper.get("params") or {}
        words = [f"{key}={value}" for key, value in params.items()]
        parsed = parse_overrides(words + typed_words(master.hydra, "task"))
        for override in parsed:
            override.config_loader = self._loader
        if master.hydra.sweeper.get("_target_") != _BASIC_SWEEPER:
            return self._samples(typed_words(master.hydra, "hydra"), parsed)
        for override in parsed:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                remedy = "an interval needs a sweeper that samples: list values, or use range()"
                raise ConfigError(override.key_or_group, override.get_value_string(), remedy)
        return [list(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]

    def _samples(self, fixed: list[str], parsed: list[Override]) -> list[list[str]]:
        """The overrides of a job for each combination of the groups that a sampler chooses from.

        Other keys of the search keep their defaults: whether a value is any good shows in its
        trial. But every combination must have the keys, and one without a default gets a sample.

        Args:
            fixed: Hydra's own overrides.
            parsed: all others.

        Raises:
            ConfigError: a combination lacks a key, or a sampler cannot choose from a sweep.
        """
        last = {override.key_or_group: override for override in parsed}
        plain = [o.input_line or "" for o in last.values() if not o.is_sweep_override()]
        choices, samples = [], {}
        for key, override in last.items():
            name = override.get_key_element()
            if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
                remedy = "glob() is for the basic sweeper: list the options, as in choice(A,B)"
                raise ConfigError(key, override.get_value_string(), remedy)
            if override.is_choice_sweep() and self.group_options(key):
                choices.append([f"{name}={value}" for value in override.sweep_string_iterator()])
            elif override.is_sweep_override():
                samples[key] = f"{name}={_first(override)}"
        batches = []
        for choice in itertools.product(*choices):
            batch = [*plain, *choice]
            values = OmegaConf.to_container(self.job([*fixed, *batch]), resolve=False)
            try:
                self.job([*fixed, *batch, *samples.values()])
            except ConfigError as error:
                if error.key not in samples:
                    raise
                value, where = last[error.key].get_value_string(), " ".join(["", *choice])
                remedy = f"{error.remedy}{where and f' with{where}'}"
                raise ConfigError(error.key, value, remedy) from error
            needed = [word for key, word in samples.items() if _look_up(values, key) == "???"]
            batches.append(batch + needed)
        return batches

    def _load(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        parsed = parse_overrides(overrides)
        try:
            return self._loader.load_configuration(
                self._config_name, list(overrides), mode, validate_sweep_overrides=False
            )
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise self._explain(error, parsed) from error

    def _explain(self, error: Exception, overrides: list[Override]) -> UsageError:
        """What the user has to change, found by looking at one override after the other."""
        if isinstance(error, MissingConfigException) and _is_plugin(error.missing_cfg_file):
            name = error.missing_cfg_file
            return UsageError(f"{name} is not installed here: pip install 'htsrl[sweep]'")
        fixed = [override for override in overrides if not override.is_sweep_override()]
        for override in fixed:
            if problem := self._group_problem(override) or self._group_again(override):
                return problem
        groups = [o for o in fixed if self.group_options(o.key_or_group)]
        for override in fixed:
            if override not in groups and (problem := self._key_problem(override, groups)):
                return problem
        return UsageError(_first_line(error))

    def _group_problem(self, override: Override) -> ConfigError | None:
        """A group's option that does not exist, or one of a folder inside a group."""
        group, value = override.key_or_group, override.value()
        options = self.group_options(group)
        if not options or override.is_delete() or isinstance(value, dict):
            return None
        if value in options:
            top, nested, folder = group.partition("/")
            if not nested or top == "hydra":
                return None
            return ConfigError(group, shown(value), f"write it as {top}={folder}/{value}")
        few = ", ".join(options) if len(options) <= _FEW else f"htsrl {self._config_name} --help"
        hint = did_you_mean(str(value), options) or f" ({few})"
        return ConfigError(group, shown(value), f"{group} has no such option{hint}")

    def _group_again(self, override: Override) -> ConfigError | None:
        """A group that is added (`+`) although a defaults list has it."""
        plus, group, value = _plus(override), override.key_or_group, override.value()
        if not plus or isinstance(value, dict):
            return None
        if group not in self._load([], RunMode.RUN).hydra.runtime.choices:
            return None
        return ConfigError(group, shown(value), f"write it without the {plus}")

    def _key_problem(self, override: Override, groups: list[Override]) -> ConfigError | None:
        """A key that does not exist, or a value that does not fit where it goes."""
        words = [group.input_line or "" for group in groups]
        try:
            base = self._loader.load_configuration(
                self._config_name, words, RunMode.RUN, validate_sweep_overrides=False
            )
        except (HydraException, OmegaConfBaseException, ValueError):
            return None
        key, value = override.key_or_group, shown(override.value())
        known = _key_names(base)
        if key not in known and not (override.is_add() or override.is_force_add()):
            if key.startswith("env.kwargs."):
                return ConfigError(key, value, f"a new argument is added with +{key}={value}")
            own = [name for name in known if not name.startswith("hydra.")]
            return unknown_key(key, value, known if key.startswith("hydra") else own)
        try:
            self._loader.load_configuration(
                self._config_name,
                [*words, override.input_line or ""],
                RunMode.RUN,
                validate_sweep_overrides=False,
            )
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if override.is_add() and key in known:
                return ConfigError(key, value, "write it without the +")
            return ConfigError(key, value, _first_line(error.__cause__ or error))
        return None


def _first(override: Override) -> object:
    """A value of a sweep, as it is typed."""
    value = override.value()
    if isinstance(value, IntervalSweep | RangeSweep):
        return value.start
    return next(override.sweep_string_iterator())


def _plus(override: Override) -> str:
    """What is typed in front of the key to add it."""
    if override.is_force_add():
        return "++"
    return "+" if override.is_add() else ""


def _is_plugin(name: str | None) -> bool:
    """Whether a configuration comes with a plugin of Hydra."""
    return name in _PLUGINS


def _key_names(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of all keys and sections."""
    names = []
    for key, value in cfg.items_ex(resolve=False):
        names.append(f"{prefix}{key!s}")
        if isinstance(value, DictConfig) and not (value._is_missing() or value._is_none()):
            names += _key_names(value, f"{prefix}{key!s}.")
    return names


def output_dir(cfg: DictConfig, multirun: bool) -> Path:
    """The folder that Hydra will give to the job `cfg`.

    Raises:
        ConfigError: the folder's name cannot be made.
    """
    HydraConfig.instance().set_config(cfg)
    keys = ["hydra.sweep.dir", "hydra.sweep.subdir"] if multirun else ["hydra.run.dir"]
    try:
        parts = [OmegaConf.select(cfg, key, throw_on_missing=True) for key in keys]
    except OmegaConfBaseException as error:
        raise ConfigError(keys[0], "???", _first_line(error)) from error
    if any(part is None for part in parts):
        raise ConfigError(keys[0], "null", "a folder is needed")
    return Path(*map(str, parts))
