"""Composition of command-line overrides into validated configurations, before Hydra runs.

Hydra writes `.hydra/` before it calls htsrl, and reports a mistake on several lines, with exit code
1. Every configuration is therefore composed here first, with Hydra's own loader. Each mistake is
reported on one line that names the key, the value and the remedy. This module does not import
torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from htsrl_cli.cli import search, tuned
from htsrl_cli.cli.explain import (
    REFUSALS,
    Explainer,
    first_line,
    separate_arguments,
    unparsable,
)
from htsrl_cli.cli.files import CheckedRepository, configs_dir
from htsrl_cli.config.load import load_bench_config, load_eval_config, load_train_config
from htsrl_cli.config.sections import BenchConfig, EvalConfig, TrainConfig
from htsrl_cli.errors import ConfigError, UsageError
from htsrl_cli.plugins import config_folders

VERSION_BASE = "1.3"
_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


class PackageConfigs(SearchPathPlugin):
    """Hydra plugin that adds the YAML files of other packages; see `htsrl_cli.plugins`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the `configs` folders of other packages to Hydra's search path."""
        for folder in config_folders():
            search_path.append(provider="htsrl", path=f"file://{folder}")


Plugins.instance().register(PackageConfigs)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parses words of the command line into Hydra's overrides.

    Raises:
        UsageError: a word is not of the form KEY=VALUE, or its value cannot be parsed.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        key, equals, value = error.override.partition("=")
        if not equals:
            remedy = "write it as KEY=VALUE"
            if Path(key).exists():
                remedy += f", for example resume={key} or checkpoint={key}"
            raise UsageError(f"{key}: {remedy}") from error
        raise ConfigError(key, value, separate_arguments(key) or unparsable(error)) from error


def _refuse_removals(overrides: Sequence[Override]) -> None:
    """Raises `UsageError` for an override that removes a key or group (`~KEY`)."""
    for override in overrides:
        if override.is_delete():
            word = override.input_line
            raise UsageError(f"{word}: keys and groups cannot be removed: leave this word out")


def to_train_config(cfg: DictConfig) -> TrainConfig:
    """Returns the validated configuration of a composed `train.yaml` or `bench.yaml`.

    The section `bench` is left out.

    Raises:
        ConfigError: a key or value is invalid; the first one is reported.
    """
    return load_train_config(resolved(cfg))


def to_eval_config(cfg: DictConfig) -> EvalConfig:
    """Returns the validated configuration of a composed `eval.yaml`.

    Raises:
        ConfigError: a key or value is invalid; the first one is reported.
    """
    return load_eval_config(resolved(cfg))


def to_bench_config(cfg: DictConfig) -> BenchConfig:
    """Returns the validated section `bench` of a composed `bench.yaml`.

    `to_train_config` validates the other sections.

    Raises:
        ConfigError: a key or value is invalid; the first one is reported.
    """
    return load_bench_config(resolved(cfg, ["bench"])["bench"])


def resolved(cfg: DictConfig, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the composed values with interpolations resolved.

    Args:
        names: top-level keys to return; if None, all except `hydra`, `resume` and `bench`.

    Raises:
        ConfigError: a mandatory value is missing, or an interpolation cannot be resolved.
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
        raise ConfigError(error.full_key or "?", raw, first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def typed_words(hydra: Any, kind: str) -> list[str]:
    """Returns overrides in the form in which they were given, with unresolved interpolations.

    Args:
        hydra: the section `hydra` of a composed configuration.
        kind: `task` for overrides of htsrl's keys, `hydra` for overrides of Hydra's keys.
    """
    words = OmegaConf.to_container(hydra.overrides, resolve=False)
    assert isinstance(words, dict)
    return [str(word) for word in words[kind]]


def tuned_job(cfg: DictConfig) -> tuple[DictConfig, str]:
    """Returns the configuration of the current job, and its option of the group `tuned`.

    Call this function in a process in which Hydra runs a job. The jobs of a sweep may need
    different settings, so that `tuned=auto` can be replaced only here.

    Args:
        cfg: the configuration that Hydra composed for the job.
    """
    hydra = HydraConfig.get()
    composer = Composer(str(hydra.job.config_name), config_dir(hydra))
    if tuned.choose(cfg, hydra.runtime.choices, composer.group_options(tuned.GROUP)):
        cfg = composer.job([*typed_words(hydra, "hydra"), *typed_words(hydra, "task")])
        return cfg, cfg.hydra.runtime.choices[tuned.GROUP]
    return cfg, hydra.runtime.choices[tuned.GROUP]


def config_dir(hydra: Any) -> str | None:
    """Returns the folder that `--config-dir` named, from the section `hydra`; None if none."""
    sources = hydra.runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def _look_up(plain: Any, key: str) -> object:
    """Returns the value of a dotted key, or None if the key does not exist."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


class Composer:
    """Composer of the configurations of one verb; it composes like Hydra but runs no job.

    Args:
        config_name: name of the primary YAML file: the verb, unless `--config-name` is given.
        config_dir: the user's additional folder of YAML files (`--config-dir`).

    Raises:
        ConfigError: `config_dir` does not exist.
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
        self._loader.repository = self._files = CheckedRepository(search_path)
        self._explainer = Explainer(self.group_options, self._load_unexplained)

    def is_multirun(self, overrides: Sequence[str]) -> bool:
        """Returns True if `hydra.mode` is `MULTIRUN` in the composed configuration."""
        return bool(self._load(overrides, RunMode.MULTIRUN).hydra.mode == RunMode.MULTIRUN)

    def job(self, overrides: Sequence[str]) -> DictConfig:
        """Composes the configuration of a single job, including the section `hydra`.

        `tuned=auto` is replaced by the option that it stands for.

        Raises:
            UsageError: an override is malformed, has several values, or names an unknown key or
                option.
        """
        parsed = parse_overrides(overrides)
        for override in parsed:
            if override.is_sweep_override():
                value = override.get_value_string()
                remedy = "several values need a sweep: add -m, or quote them to make one value"
                raise ConfigError(override.get_key_element(), value, remedy)
        cfg = self._load(overrides, RunMode.RUN)
        for override in parsed:
            if problem := self._explainer.kind_problem(override, parsed):
                raise problem
        choices = cfg.hydra.runtime.choices
        tuned.check(cfg, choices)
        name = tuned.choose(cfg, choices, self.group_options(tuned.GROUP))
        return self._load([*overrides, f"{tuned.GROUP}={name}"], RunMode.RUN) if name else cfg

    def sweep(self, overrides: Sequence[str]) -> tuple[DictConfig, list[DictConfig]]:
        """Composes the configuration of a multirun and the configurations of its jobs.

        Hydra's basic sweeper knows its jobs in advance. Other sweepers choose values while they
        run; for these sweepers, `_samples` chooses representative jobs.

        Raises:
            UsageError: an override is wrong (see `job`), or the sweeper cannot use it.
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

    def located(self, error: ConfigError, overrides: Sequence[str]) -> UsageError:
        """Returns an error of a job, with the place in the user's YAML file that caused it, if any.

        Args:
            error: the error.
            overrides: the overrides of the command.
        """
        parsed = parse_overrides(overrides)
        typed = {override.key_or_group for override in parsed}
        if error.key in typed and not self.group_options(error.key):
            return error
        try:
            cfg = self._load_unexplained(overrides, RunMode.MULTIRUN)
        except REFUSALS:
            return error
        choices = {"": self._config_name, **cfg.hydra.runtime.choices}
        if name := tuned.choose(cfg, choices, self.group_options(tuned.GROUP)):
            choices[tuned.GROUP] = name
        return self._files.located(error, choices)

    def group_options(self, group: str) -> list[str]:
        """Returns the sorted options of a group; an option in a folder is `folder/name`.

        The list is empty if the group does not exist.
        """
        if not self._loader.repository.group_exists(group):
            return []
        names = self._loader.get_group_options(group, ObjectType.CONFIG)
        for folder in self._loader.get_group_options(group, ObjectType.GROUP):
            names += [f"{folder}/{name}" for name in self.group_options(f"{group}/{folder}")]
        return sorted(names)

    def _batches(self, master: DictConfig) -> list[list[str]]:
        """Returns the overrides of each job of a multirun, or of its representative jobs."""
        search.check_settings(master.hydra.sweeper)
        words = search.words(master.hydra.sweeper)
        parsed = parse_overrides(words + typed_words(master.hydra, "task"))
        for override in parsed:
            override.config_loader = self._loader
        if master.hydra.sweeper.get("_target_") != _BASIC_SWEEPER:
            return self._samples(typed_words(master.hydra, "hydra"), parsed)
        for override in parsed:
            if override.is_sweep_override():
                search.check_list(override)
        return [list(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]

    def _samples(self, fixed: list[str], parsed: list[Override]) -> list[list[str]]:
        """Returns the overrides of representative jobs for a sweeper that samples its trials.

        There is one job for each combination of group options that the sweeper chooses from. The
        other searched keys must exist in every combination, and accept the values of their sweeps.
        They keep their defaults here, because the values of a trial cannot be known in advance. A
        key without a default gets the first value of its sweep.

        Args:
            fixed: overrides of Hydra's keys.
            parsed: all other overrides.

        Raises:
            ConfigError: a searched key does not exist in one of the combinations or does not accept
                a value, or an override uses glob() or is no valid sweep.
        """
        last = {override.key_or_group: override for override in parsed}
        if not any(override.is_sweep_override() for override in last.values()):
            raise UsageError(
                "a search needs a key with a range, for example "
                "'algo.learning_rate=tag(log,interval(1e-4,1e-2))': all its jobs would be the same"
            )
        plain = [o.input_line or "" for o in last.values() if not o.is_sweep_override()]
        choices, samples = [], {}
        for key, override in last.items():
            name = override.get_key_element()
            if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
                remedy = "glob() needs Hydra's basic sweeper: list the options, as in choice(A,B)"
                raise ConfigError(key, override.get_value_string(), remedy)
            if override.is_choice_sweep() and self.group_options(key):
                choices.append([f"{name}={value}" for value in override.sweep_string_iterator()])
            elif override.is_sweep_override():
                search.check_sweep(override)
                samples[key] = f"{name}={_first(override)}"
        batches = []
        for choice in itertools.product(*choices):
            batch = [*plain, *choice]
            values = OmegaConf.to_container(self.job([*fixed, *batch]), resolve=False)
            try:
                job = self.job([*fixed, *batch, *samples.values()])
            except ConfigError as error:
                if error.key not in samples:
                    raise
                value, where = last[error.key].get_value_string(), " ".join(["", *choice])
                remedy = f"{error.remedy}{where and f' with{where}'}"
                raise ConfigError(error.key, value, remedy) from error
            if "env" in job:
                search.check_values([last[key] for key in samples], resolved(job))
            needed = [word for key, word in samples.items() if _look_up(values, key) == "???"]
            batches.append(batch + needed)
        return batches

    def _load(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        parsed = parse_overrides(overrides)
        _refuse_removals(parsed)
        try:
            return self._load_unexplained(overrides, mode)
        except REFUSALS as error:
            chosen = [f"{o.key_or_group}/{o.value()}" for o in parsed if not o.is_sweep_override()]
            problem = self._files.composing(error, [self._config_name, *chosen])
            raise problem or self._explainer.explain(error, parsed) from error

    def _load_unexplained(
        self, overrides: Sequence[str], mode: RunMode = RunMode.RUN
    ) -> DictConfig:
        """Composes like Hydra; if Hydra cannot compose, raises its error, one of `REFUSALS`."""
        return self._loader.load_configuration(
            self._config_name, list(overrides), mode, validate_sweep_overrides=False
        )


def _first(override: Override) -> object:
    """Returns the first value of a sweep."""
    value = override.value()
    if isinstance(value, IntervalSweep | RangeSweep):
        return value.start
    return next(override.sweep_string_iterator())
