"""Checkpoints of a run: how they are taken at a barrier, and how they restore a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.state import State, Stateful, join, split
from htsrl_cli.config.plain import to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.envs.state import state_packages
from htsrl_cli.runners.roles import Roles
from htsrl_cli.runners.rollout_digest import cut_chains
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.ring import Ring
from htsrl_cli.storage.slot import Slot
from htsrl_cli.workers.board import Board

logger = logging.getLogger(__name__)

# Arrays of a slot that reach the loss; with `algo.correction`, the learner replaces the values.
_IN_LOSSES = ("log_probs", "values", "rewards", "final_values")

# Arrays of the environments' state with an entry for each column.
_OF_COLUMNS = ("obs", "memories")


def identity(config: TrainConfig, spec: EnvSpec) -> dict[str, Any]:
    """Returns entries of a checkpoint's `meta`: environment, configuration and package versions."""
    return {
        "env_spec": asdict(spec),
        "config": to_plain(config),
        "packages": state_packages(config.env),
    }


def policy_checkpoint(roles: Roles, meta: Mapping[str, Any]) -> Checkpoint:
    """Returns a checkpoint of the current parameters only, which `htsrl eval` can read.

    The checkpoint's arrays are copies: the learner's next update does not change them.

    Args:
        meta: entries to add to the checkpoint's `meta`.
    """
    arrays = {n: array.copy() for n, array in roles.learner.parameters().items()}
    state = join({"learner": State({f"params/{n}": a for n, a in arrays.items()}, {})})
    return Checkpoint(state.arrays, {**meta, **identity(roles.config, roles.spec)})


def unlearned_slot(roles: Roles, rollout: int) -> Slot | None:
    """Returns the full slot that waits for the learner when rollout `rollout` begins.

    Returns None if there is no such slot: before the first rollout, and always with `runner=sync`.
    """
    return roles.ring.slot(rollout - 1) if roles.plan.lag and rollout > 0 else None


def non_finite(roles: Roles, rollout: int) -> list[str]:
    """Returns the names of parameters and of arrays of the saved slot that are not finite.

    Observations do not count, because a network may replace such values.

    Args:
        rollout: the number of the next rollout.
    """
    named = {f"parameter {name}": a for name, a in roles.learner.parameters().items()}
    if (slot := unlearned_slot(roles, rollout)) is not None:
        stored = slot.arrays()
        named |= {f"slot.{name}": stored[name] for name in _IN_LOSSES}
    return [name for name, array in named.items() if not np.isfinite(array).all()]


def parts_of_rank(roles: Roles, rollout: int) -> dict[str, State]:
    """Returns what only this rank has of the state before rollout `rollout`."""
    slot = unlearned_slot(roles, rollout)
    return {
        "envs": roles.collector.state(),
        "rollouts": State({}, {"sha256": "".join(roles.rollouts.chains)}),
        "slot": State({} if slot is None else slot.arrays(), {}),
    }


def merge_parts(of_ranks: Sequence[Mapping[str, State]]) -> dict[str, State]:
    """Returns the parts of a whole run from those of its ranks, as one rank would have them."""
    if len(of_ranks) == 1:
        return dict(of_ranks[0])
    envs = [parts["envs"] for parts in of_ranks]
    slots = [parts["slot"].arrays for parts in of_ranks]
    states = [rank.arrays[str(i)] for rank in envs for i in range(len(rank.values["num_episodes"]))]
    arrays = {str(i): state for i, state in enumerate(states)}
    for name in _OF_COLUMNS:
        if name in envs[0].arrays:
            arrays[name] = np.concatenate([rank.arrays[name] for rank in envs])
    values = {k: [v for rank in envs for v in rank.values[k]] for k in envs[0].values}
    chains = "".join(parts["rollouts"].values["sha256"] for parts in of_ranks)
    slot = {n: np.concatenate([arrays[n] for arrays in slots], axis=1) for n in slots[0]}
    return {
        "envs": State(arrays, values),
        "rollouts": State({}, {"sha256": chains}),
        "slot": State(slot, {}),
    }


def cut_for_ranks(checkpoint: Checkpoint, size: int) -> list[Checkpoint]:
    """Returns a checkpoint for each of `size` ranks, with its environments, slot and digests."""
    return [_cut(checkpoint, rank, size) for rank in range(size)] if size > 1 else [checkpoint]


def _cut(checkpoint: Checkpoint, rank: int, size: int) -> Checkpoint:
    def own(whole: Any) -> Any:
        """Returns the rank's share of a sequence, or of an array's first axis."""
        width = len(whole) // size
        return whole[rank * width : (rank + 1) * width]

    meta = dict(checkpoint.meta)
    parts = dict(meta["parts"])
    parts["envs"] = {name: own(values) for name, values in parts["envs"].items()}
    parts["rollouts"] = {"sha256": own(parts["rollouts"]["sha256"])}
    indices = own(range(checkpoint.meta["config"]["actors"]["num_envs"]))
    arrays: dict[str, Array] = {}
    for name, array in checkpoint.arrays.items():
        part, _, rest = name.partition("/")
        if part == "slot":
            arrays[name] = np.ascontiguousarray(np.swapaxes(own(np.swapaxes(array, 0, 1)), 0, 1))
        elif part == "envs" and rest in _OF_COLUMNS:
            arrays[name] = own(array)
        elif part != "envs":
            arrays[name] = array
        elif int(rest) in indices:
            arrays[f"envs/{int(rest) - indices[0]}"] = array
    return Checkpoint(arrays, meta | {"parts": parts})


def take(
    roles: Roles, log: Stateful, rollout: int, is_exact: bool, parts: Mapping[str, State]
) -> Checkpoint:
    """Returns a checkpoint of the state before rollout `rollout`, for a bit-identical resume.

    Args:
        is_exact: False if an earlier resume of the run was not exact.
        parts: states of the environments, the digest and the slot of all ranks.
    """
    whole = join({"learner": roles.learner.state(), "log": log.state(), **parts})
    meta = {"interval": rollout, "is_exact": is_exact, "parts": whole.values}
    return Checkpoint(whole.arrays, meta | identity(roles.config, roles.spec))


def restore(roles: Roles, checkpoint: Checkpoint) -> tuple[int, bool]:
    """Restores the roles from a checkpoint of `take`.

    The log's state is restored later, after the log has been created; see `log_state`.

    Returns:
        The number of the next rollout; and True if this and all earlier resumes of the run were
        exact.
    """
    is_exact: bool = checkpoint.meta.get("is_exact", True)
    whole = State(checkpoint.arrays, checkpoint.meta["parts"])
    rollout: int = checkpoint.meta["interval"]
    chains: str = split(whole, "rollouts").values["sha256"]
    roles.rollouts.chains = cut_chains(chains, len(roles.rollouts.chains))
    roles.learner.load_state(split(whole, "learner"))
    slot = unlearned_slot(roles, rollout)
    if slot is not None:
        is_exact &= _restore_slot(roles, slot, rollout - 1, split(whole, "slot").arrays)
    envs = split(whole, "envs")
    roles.collector.load_state(envs)
    if not np.array_equal(roles.collector.obs, envs.arrays["obs"]):
        logger.warning(
            "the restored environments' observations differ from the saved ones: from here on, "
            "this run differs from an uninterrupted run (is_exact in summary.json)"
        )
        is_exact = False
    return rollout, is_exact


def log_state(checkpoint: Checkpoint) -> State:
    """Returns the state of the run's log, read from a checkpoint of `take`."""
    return split(State({}, checkpoint.meta["parts"]), "log")


def _restore_slot(roles: Roles, slot: Slot, rollout: int, stored: Mapping[str, Any]) -> bool:
    """Restores the slot of rollout `rollout`, which waits for the learner.

    Checkpoints contain no activations, so these are recomputed here if the learner needs them.

    Returns:
        False if the recomputed outputs of the policy differ from the saved outputs.
    """
    _fill(slot, stored)
    if not roles.inference.keeps_activations:
        return True
    _serve_again(roles, slot, rollout)
    if any(a.tobytes() != stored[name].tobytes() for name, a in slot.arrays().items()):
        logger.warning(
            "the policy's recomputed outputs for the saved observations differ from the saved "
            "outputs: from here on, this run may differ from an uninterrupted run (is_exact in "
            "summary.json)"
        )
        _fill(slot, stored)
        return False
    return True


def _fill(slot: Slot, stored: Mapping[str, Any]) -> None:
    for name, array in slot.arrays().items():
        array[:] = stored[name]


def _serve_again(roles: Roles, slot: Slot, rollout: int) -> None:
    """Recomputes what actors compute from the observations in the slot of rollout `rollout`.

    These are actions, log-probabilities, values and activations. They are computed with the
    parameters of that rollout, and written to the ring.
    """
    ring, store = roles.ring, roles.store
    assert isinstance(ring, Ring)
    for name, array in roles.learner.previous_parameters().items():
        store.place(rollout)[name][...] = array
    store.publish(rollout)
    ring.begin(rollout, slot.obs[0], slot.noise)
    actor = Actor(roles.inference, ring, store, Board(1), 0)
    for t in range(ring.num_steps):
        actor.serve([(c, t) for c in range(ring.num_columns)])
