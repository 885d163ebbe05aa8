"""The check that a checkpoint holds all that a resume needs, in the form that this run needs.

A checksum shows that a file is as it was written, not that htsrl wrote it. Everything is checked
before the resume changes a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.state import Array, State, split
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.envs.state import state_packages
from htsrl_cli.errors import CheckpointError
from htsrl_cli.learning.learner import Learner
from htsrl_cli.learning.statistics import RETURNS
from htsrl_cli.storage.memory import ArrayType
from htsrl_cli.storage.slot import slot_fields

_Test = Callable[[Any], bool]


def check_fit(
    checkpoint: Checkpoint, config: TrainConfig, plan: RunPlan, spec: EnvSpec, learner: Learner
) -> None:
    """Checks a checkpoint against the environment, the network and the sizes of this run.

    Raises:
        CheckpointError: the environment's observations, actions or players differ, the network's
            parameters differ, another version of the environment's package saved the states, or a
            value or array is missing, has another form or is not finite.
    """
    stored = checkpoint.meta.get("env_spec")
    if stored != json.loads(json.dumps(asdict(spec))):
        raise CheckpointError(
            "the environment's observations, actions or players have changed: the checkpoint was "
            f"saved with {stored}, but the installed environment has {asdict(spec)}; install the "
            "version of the environment with which the run was trained"
        )
    _check_packages(checkpoint.meta.get("packages", {}), config.env)
    for name, array in learner.parameters().items():
        found = checkpoint.arrays.get(f"learner/params/{name}")
        if found is None or found.shape != array.shape:
            raise CheckpointError(
                f"the checkpoint has no parameter {name} of shape {array.shape}: use the network "
                "with which the checkpoint was saved"
            )
    _check_values(checkpoint.meta, config, plan)
    whole = State(checkpoint.arrays, checkpoint.meta["parts"])
    _check_learner(split(whole, "learner").arrays, learner.parameters())
    if spec.normalize_reward and whole.values["learner"]["num_updates"]:
        of_columns = {RETURNS: ((plan.num_columns,), "float64")}
        _check_arrays("learner", split(whole, "learner").arrays, of_columns)
    _check_envs(split(whole, "envs").arrays, config, plan, spec, learner.memory_width)
    if plan.lag and checkpoint.meta["interval"] > 0:
        layouts = {
            field.name: field.layout(plan.sync_interval, plan.num_columns)
            for field in slot_fields(spec, learner.memory_width)
        }
        _check_arrays("slot", split(whole, "slot").arrays, layouts)


def _check_packages(stored: Mapping[str, str], env: EnvConfig) -> None:
    """Checks that the packages that saved the environment states have the same versions now.

    Checkpoints of early versions of htsrl name no packages and pass the check.
    """
    installed = state_packages(env)
    for name, version in stored.items() if isinstance(stored, Mapping) else ():
        if installed.get(name) != version:
            raise CheckpointError(
                f"the checkpoint's environment states were saved by {name} {version}, but "
                f"{installed.get(name, 'none')} is installed: install {name} {version} to resume"
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _list_of(test: _Test, length: int | None = None) -> _Test:
    """Returns the test of a list, of `length` values if it is given, that all pass `test`."""
    return lambda value: (
        isinstance(value, list) and length in (None, len(value)) and all(map(test, value))
    )


def _is_sum(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


_OF_LOG: dict[str, _Test] = {
    "env_steps": _is_count,
    "last_line": _is_count,
    "num_episodes": _is_count,
    "seconds": _is_number,
    "recent": _list_of(_is_number),
    "episodes": _list_of(_list_of(_is_number, 3)),
    # Checkpoints of early versions of htsrl have no lags.
    "lags": lambda value: value is None or _list_of(_list_of(_is_count, 2))(value),
    "sums": lambda value: isinstance(value, dict) and all(map(_is_sum, value.values())),
}


def _check_values(meta: Mapping[str, Any], config: TrainConfig, plan: RunPlan) -> None:
    """Checks the document of a checkpoint, except what describes environment and configuration."""
    if "interval" not in meta:
        raise CheckpointError(
            "the checkpoint holds only a policy: it can be evaluated, but no run can resume from it"
        )
    interval = meta["interval"]
    is_barrier = _is_count(interval) and interval <= plan.num_rollouts
    _require(is_barrier, "interval", interval)
    _require(meta.get("env_steps") == interval * plan.steps_per_rollout, "env_steps", meta)
    _require(type(meta.get("is_exact", True)) is bool, "is_exact", meta)
    num_envs = config.actors.num_envs
    tests: dict[str, dict[str, _Test]] = {
        "learner": {"num_updates": lambda number: number == max(0, interval - (plan.lag or 0))},
        "envs": {
            "num_episodes": _list_of(_is_count, num_envs),
            "training_returns": _list_of(_is_number, num_envs),
            # With `runner=async`, the number of each environment's first unroll to collect.
            **({"numbers": _list_of(_is_count, num_envs)} if plan.lag is None else {}),
        },
        "rollouts": {"sha256": lambda value: bool(re.fullmatch(r"([0-9a-f]{64})*", str(value)))},
        "log": _OF_LOG,
    }
    parts = meta.get("parts")
    for part, of_part in tests.items():
        values = parts.get(part) if isinstance(parts, dict) else None
        for name, test in of_part.items():
            value = values.get(name) if isinstance(values, dict) else None
            _require(test(value), f"{part}.{name}", value)


def _require(holds: bool, name: str, value: object) -> None:
    if not holds:
        value = value.get(name) if isinstance(value, Mapping) else value
        raise CheckpointError(
            f"the checkpoint's value {name} is missing or does not fit this run: "
            f"{str(value)[:100]}; resume from another checkpoint"
        )


def _check_learner(found: Mapping[str, Array], parameters: Mapping[str, Array]) -> None:
    """Checks the arrays of the part `learner`: forms, and that parameters are finite."""
    forms = {name: (array.shape, array.dtype.name) for name, array in parameters.items()}
    for version in ("params", "previous"):
        _check_arrays("learner", found, {f"{version}/{name}": f for name, f in forms.items()})
        for name in parameters:
            array = found[f"{version}/{name}"]
            if not np.isfinite(array).all():
                raise CheckpointError(
                    f"the checkpoint's parameter {name} is not finite: resume from a checkpoint "
                    "before it"
                )
    for name, (shape, _) in _optimizer_forms(found, forms):
        if found[name].shape not in ((), shape) or found[name].dtype != np.float32:
            raise CheckpointError(_misfit("learner", name, found.get(name)))


def _optimizer_forms(
    found: Mapping[str, Array], forms: Mapping[str, ArrayType]
) -> Iterator[tuple[str, ArrayType]]:
    """Yields the name of each array of the optimizer, and the form of its parameter.

    Raises:
        CheckpointError: an array belongs to no parameter.
    """
    for name in found:
        if name.startswith("optimizer/"):
            _, _, parameter = name.split("/", 2) if name.count("/") > 1 else ("", "", "")
            if parameter not in forms:
                raise CheckpointError(_misfit("learner", name, None))
            yield name, forms[parameter]


def _check_envs(
    found: Mapping[str, Array],
    config: TrainConfig,
    plan: RunPlan,
    spec: EnvSpec,
    memory_width: int,
) -> None:
    """Checks the arrays of the part `envs`: observations, memory, a state for each environment."""
    shape: tuple[int, ...] = (plan.num_columns, *spec.obs_shape)
    if plan.lag is None:
        players = (spec.num_players,) if spec.num_players > 1 else ()
        shape = (config.actors.num_envs, *players, *spec.obs_shape)
    _check_arrays("envs", found, {"obs": (shape, spec.obs_dtype)})
    if memory_width:
        columns: tuple[int, ...] = (plan.num_columns,)
        if plan.lag is None:
            columns = (config.actors.num_envs, spec.num_players)
        _check_arrays("envs", found, {"memories": ((*columns, memory_width), "float32")})
    for i in range(config.actors.num_envs):
        state = found.get(str(i))
        if state is None or state.dtype != np.uint8 or state.ndim != 1:
            raise CheckpointError(_misfit("envs", str(i), state))


def _check_arrays(part: str, found: Mapping[str, Array], expected: Mapping[str, ArrayType]) -> None:
    for name, (shape, dtype) in expected.items():
        array = found.get(name)
        if array is None or array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
            raise CheckpointError(_misfit(part, name, array))


def _misfit(part: str, name: str, array: Array | None) -> str:
    what = "is missing" if array is None else f"has the form {array.dtype}{list(array.shape)}"
    return (
        f"the checkpoint's array {part}/{name} {what}, which does not fit this run: resume from "
        "another checkpoint"
    )
