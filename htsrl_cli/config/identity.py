"""Identity of a run: the keys that can change its results, and a hash of their values."""

from __future__ import annotations

import hashlib
import json

from htsrl_cli.config.plain import flatten, to_plain
from htsrl_cli.config.runners import RUNNERS
from htsrl_cli.config.sections import TrainConfig

# Keys and whole sections that cannot change results. A resume may change their values, and
# `config_sha256` ignores them.
CHANGES_NO_RESULT = (
    "actors.host",
    "actors.num_actors",
    "actors.num_executors",
    "actors.timeout_s",
    "checkpoint",
    "env.step_timeout_s",
    "eval",
    "learner.check_interval",
    "learner.num_threads",
    "log",
    "runner.rank_timeout_s",
    "runner.record",
    "runner.replay",
    "runner.stop_grace_s",
)

# Keys that are younger than others, with the value that gives the results of the time before them.
# A key with this value is not hashed, so that a configuration keeps its hash.
_YOUNGER = {
    "algo.squash": "clip",
    "env.ignore_observations": [],
    "env.mask_actions": False,
    "env.normalize_obs": False,
    "env.normalize_reward": False,
    "learner.num_shards": 1,
    "network.activation": "tanh",
    "network.memory": "none",
    "network.memory_size": 256,
    "network.separate_value": True,
}


def named_modules(config: TrainConfig) -> dict[str, str]:
    """Returns the modules of users that a configuration names, by key with its value."""
    values = {"env.id": getattr(config.env, "id", ""), "network.name": config.network.name}
    return {
        f"{key}={value}": value.rpartition(":")[0]
        for key, value in values.items()
        if value.rpartition(":")[0]
    }


def changes_no_result(key: str) -> bool:
    """Returns True if CHANGES_NO_RESULT contains the dotted `key` or its section."""
    return any(key == entry or key.startswith(f"{entry}.") for entry in CHANGES_NO_RESULT)


def equivalent(key: str, value: object) -> object:
    """Returns the value that represents `value` in hashes and comparisons of configurations.

    All values of a key that give equal results have the same representative: `hts` represents
    `runner.name=hts` and `runner.name=serial`. Every other value represents itself.
    """
    runner = RUNNERS.get(value) if key == "runner.name" and isinstance(value, str) else None
    return runner.equals if runner else value


def config_sha256(config: TrainConfig) -> str:
    """Returns the hexadecimal SHA-256 of the names and values of all keys that can change results.

    Values that give equal results are hashed as one value; see `equivalent`. A key in `_YOUNGER` is
    left out if it has the value there.
    """
    values = {
        key: equivalent(key, value)
        for key, value in flatten(to_plain(config))
        if not changes_no_result(key) and (key not in _YOUNGER or value != _YOUNGER[key])
    }
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
