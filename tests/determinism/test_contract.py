"""The determinism contract: the same bits for any workers, any timing and either runner.

A fingerprint holds the digests of all slots, of the parameters and of the optimizer's state, and
every metric except those of wall-clock time.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.learning import learner as learning
from tests import harness, sections
from tests.harness import IMAGE_PRECISION, Fingerprint

# Environment, algorithm, precision, and kernel of the linear layer.
Combination = tuple[str, str, str, str]

# The combinations that `make test` checks; `make test-slow` checks all.
FAST = {
    # A2C keeps activations. test_auditor and test_resume cover PPO on images.
    ("atari", "a2c", IMAGE_PRECISION, "product"),
    ("truncating", "ppo", "fp32", "product"),
    ("gaussian", "vtrace", "fp32", "product"),
    ("terminating", "impala", "fp32", "product"),
}


def marks(env: str, precision: str) -> list[pytest.MarkDecorator]:
    """Returns the marks of a combination that `make test` leaves out."""
    emulated = (env, precision) == ("screens", "bf16")
    return [pytest.mark.slow, *([harness.NEEDS_BF16] if emulated else [])]


COMBINATIONS = [
    pytest.param(
        (env, algo, precision, kernel),
        marks=() if (env, algo, precision, kernel) in FAST else marks(env, precision),
        id=f"{env}-{algo}-{precision}-{kernel}",
    )
    for env in harness.ENVS
    for algo in harness.ALGOS
    for precision, kernel in (("fp32", "product"), ("fp32", "convolution"), ("bf16", "product"))
    if kernel == "product" or env in harness.IMAGES
]


class Reference:
    """A cache of runs with `runner=serial`, one for each combination."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fingerprints: dict[Combination, Fingerprint] = {}

    def path(self, combination: Combination) -> Path:
        return self._folder / "-".join(combination)

    def of(self, combination: Combination) -> Fingerprint:
        if combination not in self._fingerprints:
            config = replace(
                harness.small_config(*combination, runner="serial"),
                checkpoint=sections.checkpoint(interval=harness.STEPS_PER_ROLLOUT, keep=100),
            )
            self._fingerprints[combination] = harness.run(config, self.path(combination))
        return self._fingerprints[combination]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"))


def worker_processes() -> list[int]:
    """Returns the ids of this process's living workers."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):  # It may have ended.
            if "spawn_main" in str(process.cmdline()):
                found.append(process.pid)
    return found


@contextmanager
def torment(seed: int) -> Iterator[list[int]]:
    """Suspends and resumes random workers of this process for random times."""
    rng, over, stopped = random.Random(seed), threading.Event(), list[int]()

    def stop_and_continue() -> None:
        while not over.wait(rng.uniform(0.0, 0.05)):
            workers = worker_processes()
            if workers:
                pid = rng.choice(workers)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
                over.wait(rng.expovariate(20))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_continue)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("combination", COMBINATIONS)
class TestContract:
    def test_reference_run_has_every_kind_of_end(
        self, reference: Reference, combination: Combination
    ) -> None:
        reference.of(combination)
        slots = harness.slots(reference.path(combination))
        assert len(slots) == harness.NUM_ROLLOUTS
        terminated, truncated, lengths = (
            np.stack([slot[name] for slot in slots])
            for name in ("terminated", "truncated", "episode_lengths")
        )
        if combination[0] in harness.IMAGES:
            assert (terminated & (lengths == 0)).sum() > 50, "lives lost"
            assert (terminated & (lengths > 0)).sum() >= 5, "games over"
            assert (truncated & ~terminated).sum() >= 5, "games truncated"
        else:
            ends = terminated if combination[0] == "terminating" else truncated
            assert ends.sum() > 100

    def test_hts_equals_serial(
        self, reference: Reference, combination: Combination, tmp_path: Path
    ) -> None:
        config = harness.with_workers(harness.small_config(*combination), 4, 2, 2)
        assert harness.run(config, tmp_path) == reference.of(combination)

    def test_workers_stopped_at_random(
        self, reference: Reference, combination: Combination, tmp_path: Path
    ) -> None:
        config = harness.with_workers(harness.small_config(*combination), 3, 2, 1)
        with torment(seed=1) as stopped:
            assert harness.run(config, tmp_path) == reference.of(combination)
        assert len(stopped) > 20


@pytest.mark.parametrize(
    ("num_executors", "num_actors", "num_threads"),
    [(1, 1, 1), (1, 1, 2), (2, 1, 2), (4, 4, 1), (7, 2, 1), (16, 1, 2), (16, 2, 2)],
    ids=str,
)
@pytest.mark.parametrize(
    ("env", "algo", "precision"),
    [
        pytest.param(env, algo, precision, marks=marks(env, precision))
        for env in ("screens", "truncating", "gaussian")
        for algo in harness.ALGOS
        for precision in ("fp32", "bf16")
    ],
)
def test_number_of_workers_changes_nothing(
    reference: Reference,
    env: str,
    algo: str,
    precision: str,
    num_executors: int,
    num_actors: int,
    num_threads: int,
    tmp_path: Path,
) -> None:
    config = harness.small_config(env, algo, precision)
    config = harness.with_workers(config, num_executors, num_actors, num_threads)
    assert harness.run(config, tmp_path) == reference.of((env, algo, precision, "product"))


def test_executors_with_unequal_shares_change_nothing(tmp_path: Path) -> None:
    """Runs 5 environments on 2 executors, then resumes in the middle on 3 and on 4."""
    steps_per_rollout = 5 * harness.SYNC_INTERVAL
    config = harness.small_config("truncating", "ppo")
    config = replace(
        config,
        actors=replace(config.actors, num_envs=5),
        checkpoint=sections.checkpoint(interval=steps_per_rollout, keep=100),
        total_steps=8 * steps_per_rollout,
    )
    serial = replace(config, runner=replace(config.runner, name="serial"))
    expected = harness.run(serial, tmp_path / "serial")
    checkpoint = None
    for num_executors in (2, 3, 4):
        by_some = harness.with_workers(config, num_executors, 1, 1)
        assert harness.run(by_some, tmp_path / "hts", checkpoint) == expected
        checkpoint = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))[3]


@pytest.mark.parametrize(
    ("kernel", "algo"),
    [
        ("product", "a2c"),
        ("convolution", "ppo"),
        pytest.param("product", "ppo", marks=pytest.mark.slow),
        pytest.param("convolution", "a2c", marks=pytest.mark.slow),
    ],
)
def test_screens_of_full_size(kernel: str, algo: str, tmp_path: Path) -> None:
    """Covers images of the default size: libraries choose kernels by the sizes of arrays."""
    fingerprints = []
    for runner in ("serial", "hts"):
        config = harness.small_config("screens", algo, IMAGE_PRECISION, kernel, runner)
        config = replace(config, total_steps=3 * harness.STEPS_PER_ROLLOUT)
        fingerprints.append(harness.run(config, tmp_path / runner))
    assert fingerprints[0] == fingerprints[1]


def test_actors_in_threads_change_nothing(reference: Reference, tmp_path: Path) -> None:
    combination = ("truncating", "ppo", "fp32", "product")
    config = harness.small_config(*combination)
    config = replace(config, actors=replace(config.actors, host="thread", num_actors=2))
    assert harness.run(config, tmp_path) == reference.of(combination)


@pytest.mark.parametrize("correction", ["none", "decoupled", "vtrace"])
def test_sync_has_nothing_to_correct(correction: str, tmp_path: Path) -> None:
    fingerprints = []
    for name in ("proximal", correction):
        config = harness.small_config("truncating", "ppo", runner="sync")
        config = replace(
            config,
            algo=replace(harness.PPO, correction=name, max_weight=1.0),
            total_steps=6 * harness.STEPS_PER_ROLLOUT,
        )
        fingerprints.append(harness.run(config, tmp_path / name))
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize("algo", ["decoupled", "vtrace"])
def test_weights_of_one_give_the_run_of_proximal(
    reference: Reference, algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "ratios_of", torch.ones_like)
    found = harness.run(harness.small_config("truncating", algo), tmp_path)
    proximal = reference.of(("truncating", "ppo", "fp32", "product"))
    hashes = (found.params, found.optimizer, found.rollouts)
    assert hashes == (proximal.params, proximal.optimizer, proximal.rollouts)


def test_sync_repeats_itself(tmp_path: Path) -> None:
    config = harness.small_config("truncating", "a2c", runner="sync")
    first = harness.run(harness.with_workers(config, 4, 1, 2), tmp_path / "first")
    assert harness.run(harness.with_workers(config, 2, 1, 1), tmp_path / "second") == first


def test_seeds_differ(reference: Reference, tmp_path: Path) -> None:
    combination = ("truncating", "ppo", "fp32", "product")
    config: TrainConfig = replace(harness.small_config(*combination), seed=8)
    ours, theirs = harness.run(config, tmp_path), reference.of(combination)
    assert ours.params != theirs.params
    assert ours.optimizer != theirs.optimizer
    assert ours.rollouts != theirs.rollouts
