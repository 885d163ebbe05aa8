"""The start of a run on several ranks: what rank 0 tells the others, and what the others do.

Rank 0 plans the run, and alone reads and writes its folder. The other ranks get the configuration
and their part of a checkpoint from it, and then obey its orders (`htsrl_cli.runners.member`).
"""

from __future__ import annotations

import logging
import platform
import sys
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch

from htsrl_cli import __version__
from htsrl_cli.config.identity import changes_no_result
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import ConfigError, UsageError
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.ranks.group import Group, joined
from htsrl_cli.runners.member import Member
from htsrl_cli.runners.snapshot import restore
from htsrl_cli.runners.start_check import check_computation
from htsrl_cli.runners.wiring import connect
from htsrl_cli.workers.stopping import StopSignals

# Keys that a rank may set for itself, and the section of each.
_OWN = ("actors.num_executors", "actors.num_actors", "learner.num_threads")


def lead(group: Group, config: TrainConfig) -> None:
    """Checks, as rank 0, that all ranks make the same run, and sends them its configuration.

    Raises:
        ConfigError: the run cannot be divided among the ranks.
        UsageError: a rank has another version of a package, or was started by another command.
    """
    if group.size == 1:
        return
    introductions = group.gather(_introduction())
    try:
        _check_size(group.size, config)
        for rank, found in enumerate(introductions):
            for name, value in _introduction().items():
                if found[name] != value:
                    raise UsageError(
                        f"rank {rank} has {name} {found[name]}, but rank 0 has {value}: start all "
                        "ranks by the same command, with the same versions"
                    )
    except UsageError as error:
        group.broadcast(error)
        raise
    group.broadcast(config)
    group.limit(config.runner.rank_timeout_s)


def follow() -> None:
    """Trains as one of the ranks other than rank 0.

    Raises:
        HtsrlError: the ranks cannot train together, or the run failed.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    set_up_torch()
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        group.gather(_introduction())
        config = group.broadcast(None)
        if isinstance(config, UsageError):
            raise config
        group.limit(config.runner.rank_timeout_s)
        roles = connect(_with_own_workers(config), None, stack, group)
        check_computation(roles)
        checkpoint = group.scatter([])
        rollout, is_exact = 0, True
        if checkpoint is None:
            roles.collector.reset()
        else:
            rollout, is_exact = restore(roles, checkpoint)
        group.gather(is_exact)
        member = Member(roles, rollout)
        with StopSignals(config.runner.stop_grace_s) as signals:
            member.signum = lambda: signals.signum
            member.check = roles.collector.check
            member.obey()


def _words() -> list[str]:
    """Returns the words of this process's command after `train`; none in a job of submitit.

    The tasks of such a job cannot differ, because submitit gives all of them the same function.
    """
    # Hydra replaces sys.argv.
    words = sys.orig_argv
    return words[words.index("train") + 1 :] if "train" in words else []


def _introduction() -> dict[str, object]:
    """Returns what must be equal on all ranks."""
    keys = {word: word.partition("=")[0] for word in _words()}
    return {
        "htsrl": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "the command": sorted(word for word, key in keys.items() if not _may_differ(key)),
    }


def _may_differ(key: str) -> bool:
    return changes_no_result(key) or key.startswith("hydra.")


def _check_size(size: int, config: TrainConfig) -> None:
    if size > 1 and config.runner.schedule.lag is None:
        raise ConfigError("runner.name", config.runner.name, "trains on one rank only")
    if config.learner.num_shards % size:
        raise ConfigError(
            "learner.num_shards",
            config.learner.num_shards,
            f"cannot be divided among {size} ranks: start a number of ranks that divides it",
        )


def _with_own_workers(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with the worker counts that this rank's command sets."""
    typed = dict(word.split("=", 1) for word in _words() if "=" in word)
    for key in _OWN:
        if typed.get(key, "").isdecimal():
            section, _, name = key.partition(".")
            values = replace(getattr(config, section), **{name: int(typed[key])})
            config = replace(config, **{section: values})
    return config
