"""Shards: sums in the order of a tree, and rows by policy and shard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from htsrl_cli.cli.ranks import follows
from htsrl_cli.config.checks import check_combinations
from htsrl_cli.errors import ConfigError, UsageError
from htsrl_cli.ranks.shards import by_shard, slot_rows, tree_sum
from tests import harness
from tests.unit.learner_references import PPO, SPEC, PpoReference, make_slot
from tests.unit.learners import differ, digests, make_learner, no_check, theta_of


@pytest.mark.parametrize("num_leaves", [1, 2, 4, 8])
def test_leaves_are_added_in_pairs(num_leaves: int) -> None:
    rng = np.random.default_rng(num_leaves)
    leaves = [rng.standard_normal(50).astype(np.float32) for _ in range(num_leaves)]

    def total(values: list[Any]) -> Any:
        if len(values) == 1:
            return values[0]
        half = len(values) // 2
        return total(values[:half]) + total(values[half:])

    (found,) = tree_sum([[torch.tensor(leaf)] for leaf in leaves])
    assert found.numpy().tobytes() == total(leaves).tobytes()
    if num_leaves > 2:
        assert found.numpy().tobytes() != np.sum(leaves, axis=0).tobytes(), "the order matters"


def test_rows_of_policies_and_shards_by_hand() -> None:
    # 3 env steps; 2 shards of 2 environments with 2 players each, whose policies are independent.
    cells = torch.arange(24).view(3, 8)
    of_policy_1 = by_shard(cells, num_policies=2, num_shards=2)[1]
    assert of_policy_1.tolist() == [[1, 3, 9, 11, 17, 19], [5, 7, 13, 15, 21, 23]]
    # A policy's rows of the slot, in time-major order, are numbered from 0 to 11.
    rows = slot_rows(torch.tensor([[0, 3, 5], [0, 3, 5]]), width=2)
    assert rows.tolist() == [[0, 5, 9], [2, 7, 11]]
    assert (2 * rows + 1).tolist() == of_policy_1[:, [0, 3, 5]].tolist()


@pytest.mark.parametrize("correction", ["none", "proximal", "decoupled", "vtrace"])
def test_an_update_of_two_shards_equals_a_slow_reference(correction: str) -> None:
    config = replace(PPO, correction=correction)
    learner = make_learner(config, num_updates=5, num_shards=2, micro_batch=5)
    references = [
        PpoReference(config, theta_of(learner), num_updates=5, num_shards=shards)
        for shards in (1, 2)
    ]
    for number in range(3):
        slot = make_slot(SPEC, number)
        for reference in references:
            reference.update(slot, number)
        learner.update(slot, no_check)
    assert not differ(references[1].theta, theta_of(learner))
    assert differ(references[0].theta, theta_of(learner)), "shards have orders of their own"


def test_threads_change_nothing() -> None:
    hashes = []
    for num_threads in (1, 3):
        learner = make_learner(PPO, num_shards=2, micro_batch=5, num_threads=num_threads)
        learner.update(make_slot(SPEC, 0), no_check)
        hashes.append(digests(learner))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("kind", "algo", "shards", "said"),
    [
        ("terminating", "ppo", 4096, "must divide actors.num_envs"),
        ("terminating", "impala", 2, "must be 1 with runner=async"),
    ],
)
def test_shards_that_do_not_fit_are_refused(kind: str, algo: str, shards: int, said: str) -> None:
    config = harness.small_config(kind, algo, runner="async" if algo == "impala" else "hts")
    config = replace(config, learner=replace(config.learner, num_shards=shards))
    with pytest.raises(ConfigError, match=said):
        check_combinations(config)


def test_only_train_runs_on_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    # A batch system may set RANK for its own purposes.
    monkeypatch.setenv("RANK", "1")
    assert not follows("eval")
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="eval: runs in one process only"):
        follows("eval")
    monkeypatch.setenv("RANK", "0")
    assert not follows("eval")
