"""Identity of a run: the keys that can change results, and their hash."""

from __future__ import annotations

import hashlib
import json

from htsrl_cli.config.plain import flatten, to_plain
from htsrl_cli.config.runners import RUNNERS
from htsrl_cli.config.sections import TrainConfig

# Keys and whole sections that cannot change results. A resume may change them, and `config_sha256`
# leaves them out.
CHANGES_NO_RESULT = (
    "actors.host",
    "actors.num_actors",
    "actors.num_executors",
    "actors.timeout_s",
    "checkpoint",
    "env.step_timeout_s",
    "eval",
    "learner.num_threads",
    "log",
    "runner.stop_grace_s",
)


def changes_no_result(key: str) -> bool:
    """Returns True if CHANGES_NO_RESULT contains a dotted key or its section."""
    return any(key == entry or key.startswith(f"{entry}.") for entry in CHANGES_NO_RESULT)


def equivalent(key: str, value: object) -> object:
    """Maps values with equal results to one of them: `runner.name=serial` to `hts`."""
    runner = RUNNERS.get(value) if key == "runner.name" and isinstance(value, str) else None
    return runner.equals if runner else value


def config_sha256(config: TrainConfig) -> str:
    """Returns the SHA-256, in hex, of all keys and values that can change results."""
    values = {
        key: equivalent(key, value)
        for key, value in flatten(to_plain(config))
        if not changes_no_result(key)
    }
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
