"""Tests of the unroll queue, recorded schedules, the parameter store and the actor's safe reads."""

from __future__ import annotations

import fcntl
import json
import struct
import termios
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.sampling.async_actor import AsyncActor
from htsrl_cli.sampling.inference import Inference, InferenceSetup
from htsrl_cli.sampling.schedule import Runs, Schedule, Unroll, as_runs, from_runs
from htsrl_cli.sampling.unrolls import UnrollQueue, copy_unroll, local_slot
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import CONTEXT, Pipe
from tests import sections
from tests.unit.test_actor import Positional, build_instead, random_parameters

T, U, NUM_ENVS = 4, 5, 3
PLAYERS = pytest.mark.parametrize("num_players", [1, 3])


def spec_of(num_players: int) -> EnvSpec:
    return EnvSpec((6,), "float32", ActionSpec("categorical", (3, 2)), num_players)


def make_queue(num_players: int = 1) -> UnrollQueue:
    return UnrollQueue(spec_of(num_players), T, U, NUM_ENVS)


def fill(arrays: Mapping[str, Array], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for array in arrays.values():
        array[:] = rng.integers(0, 100, array.shape) > 50 if array.dtype == bool else 0
        if array.dtype != bool:
            array[:] = rng.integers(0, 100, array.shape)


# The queue


@PLAYERS
def test_each_buffer_has_its_own_columns(num_players: int) -> None:
    queue = make_queue(num_players)
    assert (queue.num_steps, queue.num_columns, queue.num_players) == (
        T,
        U * num_players,
        num_players,
    )
    columns = [c for u in range(U) for c in range(queue.num_columns)[queue.columns(u)]]
    assert columns == list(range(U * num_players))
    assert queue.slot(queue.rollout) is queue.slot_of_buffers
    assert np.isnan(queue.slot_of_buffers.rewards).all()
    assert np.isnan(queue.slot_of_buffers.obs).all()


@PLAYERS
def test_an_unroll_is_copied_whole_and_alone(num_players: int) -> None:
    queue = make_queue(num_players)
    fill(queue.slot_of_buffers.arrays(), 0)
    target = local_slot(spec_of(num_players), T, 2 * num_players)
    fill(target.arrays(), 1)
    before = {name: array.copy() for name, array in target.arrays().items()}
    copy_unroll(queue.slot_of_buffers, 4, target, 1, num_players)
    own, other = slice(num_players, 2 * num_players), slice(num_players)
    for name, array in target.arrays().items():
        copied = queue.slot_of_buffers.arrays()[name][:, queue.columns(4)]
        assert np.array_equal(array[:, own], copied), name
        assert np.array_equal(array[:, other], before[name][:, other]), name
        assert not np.array_equal(copied, before[name][:, own]), name


@PLAYERS
def test_a_slot_of_one_unroll_takes_a_copy(num_players: int) -> None:
    queue = make_queue(num_players)
    fill(queue.slot_of_buffers.arrays(), 0)
    one = queue.one_unroll()
    copy_unroll(queue.slot_of_buffers, 4, one, 0, num_players)
    kept = {name: array.copy() for name, array in one.arrays().items()}
    fill(queue.slot_of_buffers.arrays(), 1)
    for name, array in one.arrays().items():
        assert array.shape[1] == num_players
        assert array.dtype == queue.slot_of_buffers.arrays()[name].dtype
        assert np.array_equal(array, kept[name]), "the copy does not change with the queue"


@PLAYERS
def test_the_record_of_an_unroll(num_players: int) -> None:
    queue = make_queue(num_players)
    slot, last = queue.slot_of_buffers, num_players - 1
    columns = queue.columns(2)
    slot.terminated[:] = slot.truncated[:] = False
    queue.owners[2, :3] = 1, 7, 0
    slot.versions[:, columns] = 5
    slot.versions[2:, columns.start + last] = 6
    queue.final_versions[:, columns] = 9
    slot.truncated[1, columns] = True
    # An episode that has terminated has no value of its last observation.
    slot.truncated[3, columns] = slot.terminated[3, columns] = True
    assert queue.owner(2) == (1, 7)
    runs = [*[[[0, 5]]] * last, [[0, 5], [2, 6]]]
    finals = [[1, player, 9] for player in range(num_players)]
    assert queue.unroll(2) == Unroll(1, 7, runs, finals)


def waiting(pipe: Pipe) -> int:
    """Returns how many numbers are in a pipe."""
    size = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", size)[0]) // 4


def fill_in_child(queue: UnrollQueue, worker: int, control: Connection) -> None:
    """Fills two free buffers, then waits; the environment's number is that of the worker."""
    for number in range(2):
        (buffer,) = queue.free.read(1)
        queue.owners[buffer, :3] = worker, number, worker
        queue.slot_of_buffers.rewards[:, queue.columns(buffer)] = 10 * worker + number
        queue.full.write([buffer])
    control.send(None)
    control.recv()


def test_spawned_processes_share_buffers_and_pipes() -> None:
    queue = make_queue(num_players=3)
    queue.release(range(U))
    children = []
    for worker in range(2):
        ours, theirs = CONTEXT.Pipe()
        child = CONTEXT.Process(target=fill_in_child, args=(queue, worker, theirs))
        child.start()
        children.append((child, ours))
    for _, control in children:
        control.recv()
    full = queue.full.read(U)
    assert len(full) == len(set(full)) == 4
    assert set(queue.free.read(U)) == set(range(U)) - set(full), "no buffer has two owners"
    assert {queue.owner(u) for u in full} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for u in full:
        env, number = queue.owner(u)
        assert (queue.slot_of_buffers.rewards[:, queue.columns(u)] == 10 * env + number).all()
    for child, control in children:
        control.send(None)
        child.join()
        assert child.exitcode == 0


def test_buffers_come_in_order_of_arrival() -> None:
    queue = make_queue()
    for buffer in (3, 0, 4):
        queue.full.write([buffer])
    assert waiting(queue.full) == 3
    assert queue.full.read(2) == [3, 0]
    assert queue.full.read(2) == [4]
    assert queue.full.read(2) == []


# Schedules


@pytest.mark.parametrize("seed", range(20))
def test_runs_give_the_versions_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    versions = rng.integers(0, 3, rng.integers(1, 30)) + 2**40
    runs = as_runs(versions)
    assert np.array_equal(from_runs(runs, len(versions)), versions)
    assert len(runs) == 1 + np.count_nonzero(np.diff(versions))
    assert json.loads(json.dumps(runs)) == runs


@pytest.mark.parametrize(
    ("versions", "runs"),
    [
        ([4], [[0, 4]]),
        ([4, 4, 4], [[0, 4]]),
        ([0, 0, 1], [[0, 0], [2, 1]]),
        ([4, 5, 5, 4], [[0, 4], [1, 5], [3, 4]]),
        ([-1, 0], [[0, -1], [1, 0]]),
    ],
)
def test_runs_by_hand(versions: list[int], runs: Runs) -> None:
    assert as_runs(np.array(versions)) == runs
    assert from_runs(runs, len(versions)).tolist() == versions


HEADER = {"version": 1, "config_sha256": "abc"}
UPDATES = [
    [Unroll(0, 0, [[[0, 0]]], []), Unroll(1, 0, [[[0, 0]]], [[2, 0, 0]])],
    [Unroll(1, 1, [[[0, 0], [3, 1]]], []), Unroll(0, 1, [[[0, 1]]], [])],
    [Unroll(0, 2, [[[0, 1], [1, 2]]], [[1, 0, 2]]), Unroll(1, 2, [[[0, 2]]], [])],
]


def lines() -> list[str]:
    updates = [{"update": j, "unrolls": unrolls} for j, unrolls in enumerate(UPDATES)]
    return [json.dumps(line) for line in [HEADER, *updates]]


def load(folder: Path, text: str) -> Schedule:
    path = folder / "schedule.jsonl"
    path.write_text(text)
    return Schedule.load(path)


def test_a_schedule_is_read_as_it_was_written(tmp_path: Path) -> None:
    schedule = load(tmp_path, "\n".join(lines()) + "\n")
    assert schedule == Schedule(HEADER, UPDATES)
    assert schedule.of_envs([1]) == {(1, j): UPDATES[j][k] for j, k in ((0, 1), (1, 0), (2, 1))}
    assert schedule.of_envs([0, 1]).keys() == {(e, n) for e in (0, 1) for n in range(3)}
    assert load(tmp_path, lines()[0]).updates == []


DAMAGES: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "not JSON": lambda: "not JSON",
    "no header": lambda: "\n".join(["", *lines()[1:]]),
    "truncated": lambda: "\n".join(lines())[:-20],
    "a line is missing": lambda: "\n".join([*lines()[:2], lines()[3]]),
    "a line is there twice": lambda: "\n".join([*lines()[:3], *lines()[2:]]),
    "another kind of line": lambda: "\n".join([*lines()[:3], '{"loss": 1}']),
    "a number": lambda: "\n".join([*lines()[:3], "17"]),
    "an unroll without versions": lambda: "\n".join(
        [lines()[0], '{"update": 0, "unrolls": [[0, 0]]}']
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_schedule_is_refused(damage: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        load(tmp_path, DAMAGES[damage]())


def test_the_wrong_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 3 belongs to update 2"):
        load(tmp_path, DAMAGES["a line is missing"]())


@pytest.mark.parametrize(
    ("update", "unroll", "lag"),
    [
        (0, UPDATES[0][0], 1),
        (4, Unroll(0, 3, [[[0, 4]]], []), 1),
        (4, Unroll(0, 3, [[[0, 2], [3, 4]]], []), 2),
        # Only one player, or only the value of a last observation, has the old version.
        (4, Unroll(0, 3, [[[0, 4]], [[0, 4], [2, 1]]], []), 3),
        (4, Unroll(0, 3, [[[0, 4]]], [[2, 0, 0]]), 4),
    ],
)
def test_the_largest_lag(update: int, unroll: Unroll, lag: int) -> None:
    updates = [[Unroll(0, 0, [[[0, j]]], [])] for j in range(5)]
    updates[1] = UPDATES[1]
    assert Schedule(HEADER, updates).max_lag == 1
    updates[update] = [*updates[update], unroll]
    assert Schedule(HEADER, updates).max_lag == lag
    assert Schedule(HEADER, []).max_lag == 0


# The parameter store


@pytest.mark.parametrize("num_places", [2, 3, 5])
def test_old_versions_stay_until_their_place_is_needed(num_places: int) -> None:
    store = ParameterStore({"a": ((2,), "float32"), "b": ((), "int64")}, num_places)
    assert store.num_places == num_places
    for version in range(12):
        store.place(version)["a"][:] = version
        store.place(version)["b"][...] = version
        assert store.version == version - 1, "a version is written before it is published"
        kept = range(max(0, version - num_places + 1), version + 1)
        assert [store.place(v)["a"].tolist() for v in kept] == [[v, v] for v in kept]
        store.publish(version)
        assert store.version == int(store.values["b"]) == version


# The actor


def stored(store: ParameterStore, version: int) -> None:
    """Writes and publishes a version whose parameters are multiples of those of version 0."""
    for name, array in random_parameters(spec_of(1)).items():
        store.place(version)[name][...] = array * (1 + version)
    store.publish(version)


class Stage:
    """A queue full of random observations, a store with version 0, and an actor."""

    def __init__(self, num_places: int = 3, *, batch: int = 4, fixed_rows: bool = False) -> None:
        set_up_torch()
        self.queue = make_queue()
        rng = np.random.default_rng(0)
        slot = self.queue.slot_of_buffers
        for array in (slot.obs, self.queue.final_obs):
            array[:] = rng.standard_normal(array.shape)
        slot.noise[:] = rng.random(slot.noise.shape)
        layout = {n: (a.shape, a.dtype.name) for n, a in random_parameters(spec_of(1)).items()}
        self.store = ParameterStore(layout, num_places)
        stored(self.store, 0)
        setup = InferenceSetup(
            spec=spec_of(1),
            network=sections.network(),
            algo=sections.impala(),
            batch=batch,
            fixed_rows=fixed_rows,
            device="cpu",
            precision="fp32",
            keeps_activations=False,
        )
        self.actor = AsyncActor(setup, self.queue, self.store, Board(1), 0)


def published_during(
    patch: pytest.MonkeyPatch, store: ParameterStore, versions: list[int]
) -> list[int]:
    """Makes the first read of parameters publish versions halfway; returns a log of reads."""
    load, reads = Inference.load, list[int]()

    def load_slowly(self: Inference, values: Mapping[str, Array]) -> None:
        reads.append(store.version)
        mixed = {name: array.copy() for name, array in values.items()}
        if len(reads) == 1:
            for version in versions:
                stored(store, version)
            # The second half of the arrays is read after the writer has published.
            for name in list(mixed)[len(mixed) // 2 :]:
                mixed[name] = values[name].copy()
        load(self, mixed)

    patch.setattr(Inference, "load", load_slowly)
    return reads


@pytest.mark.parametrize(
    ("num_places", "newer", "reads"),
    [(3, 0, 1), (3, 1, 1), (3, 2, 2), (3, 3, 2), (3, 7, 2), (5, 3, 1), (5, 4, 2)],
)
def test_a_read_is_repeated_if_its_place_may_have_been_overwritten(
    num_places: int, newer: int, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(num_places)
    done = published_during(monkeypatch, stage.store, list(range(1, newer + 1)))
    stage.actor.serve([(2, 1)])
    assert done == [0, newer][:reads]
    version = stage.queue.slot_of_buffers.versions[1, 2]
    assert version == (0 if reads == 1 else newer)
    # The parameters are those of one version.
    monkeypatch.undo()
    calm = Stage(num_places)
    for v in range(1, version + 1):
        stored(calm.store, v)
    calm.actor.serve([(2, 1)])
    assert calm.queue.slot_of_buffers.versions[1, 2] == version
    assert calm.queue.slot_of_buffers.values[1, 2] == stage.queue.slot_of_buffers.values[1, 2]


def test_every_pass_takes_the_newest_version() -> None:
    stage = Stage()
    for version in range(5):
        stored(stage.store, version)
        stage.actor.serve([(1, version % T)])
        assert stage.queue.slot_of_buffers.versions[version % T, 1] == version


def test_a_last_observation_has_its_own_version() -> None:
    stage = Stage()
    stored(stage.store, 1)
    stage.actor.serve([(3, -2), (1, 0)])
    written = np.zeros_like(stage.queue.final_versions)
    written[1, 3] = 1
    assert np.array_equal(stage.queue.final_versions, written)
    assert np.isfinite(stage.queue.slot_of_buffers.final_values[1, 3])


def test_a_replay_serves_each_request_with_its_version() -> None:
    stage = Stage(num_places=5)
    slot, queue = stage.queue.slot_of_buffers, stage.queue
    queue.wanted[0, :4] = [0, 2, 3, 1]
    queue.wanted_finals[1, 1] = 1
    requests = [(0, 0), (1, 0), (2, 0), (3, 0), (1, -2)]
    for version in (1, 2):
        stored(stage.store, version)
    served = stage.actor.serve_as_wanted(requests)
    assert sorted(served) == [(0, 0), (1, -2), (1, 0), (3, 0)], "version 3 is not yet published"
    assert slot.versions[0, [0, 1, 3]].tolist() == [0, 2, 1]
    assert queue.final_versions[1, 1] == 1
    stored(stage.store, 3)
    assert stage.actor.serve_as_wanted([(2, 0)]) == [(2, 0)]
    # A free actor with the newest version computes the same.
    for c, version in enumerate([0, 2, 3, 1]):
        free = Stage()
        for v in range(1, version + 1):
            stored(free.store, v)
        free.actor.serve([(c, 0)])
        assert free.queue.slot_of_buffers.values[0, c] == slot.values[0, c]
        assert free.queue.slot_of_buffers.actions[0, c].tolist() == slot.actions[0, c].tolist()


@pytest.mark.parametrize("fixed_rows", [True, False])
def test_with_fixed_rows_the_row_is_that_of_the_environment(
    fixed_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment 2 gets the same answer in whichever buffer it is, from rows that differ."""
    build_instead(monkeypatch, Positional)
    found: list[Any] = []
    for buffer, others in ((0, [1, 3]), (4, []), (3, [0, 1])):
        stage = Stage(fixed_rows=fixed_rows)
        queue = stage.queue
        queue.slot_of_buffers.obs[1, buffer] = np.arange(6)
        queue.owners[:, 0] = [0, 1, 0, 1, 0]
        queue.owners[buffer, 0] = 2
        stage.actor.serve([(u, 1) for u in [*others, buffer]])
        found.append(queue.slot_of_buffers.values[1, buffer])
    assert (len(set(found)) == 1) == fixed_rows
