"""Tests of slots, the ring, the parameter store and the board."""

from __future__ import annotations

import hashlib
import time
from multiprocessing.connection import Connection

import numpy as np
import pytest

from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.networks.activations import as_tensor
from htsrl_cli.storage import ring as ring_module
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.ring import Ring
from htsrl_cli.storage.slot import Field, Slot, slot_fields
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import CONTEXT
from tests.determinism.auditor import NAMES

T, B = 3, 4
SPEC = EnvSpec((5, 2), "uint8", ActionSpec("categorical", sizes=(3, 2)))


def make_ring() -> Ring:
    return Ring(SPEC, T, B)


def fill(slot: Slot, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for array in slot.arrays().values():
        array[:] = rng.integers(0, 2, array.shape)


def test_shapes_and_dtypes() -> None:
    ring = make_ring()
    assert (ring.num_steps, ring.num_columns) == (T, B)
    assert {n: (a.shape, a.dtype.name) for n, a in ring.slot(0).arrays().items()} == {
        "obs": ((T + 1, B, 5, 2), "uint8"),
        "noise": ((T, B, 2), "float32"),
        "actions": ((T, B, 2), "int64"),
        "log_probs": ((T, B), "float32"),
        "values": ((T + 1, B), "float32"),
        "versions": ((T + 1, B), "int64"),
        "rewards": ((T, B), "float32"),
        "terminated": ((T, B), "bool"),
        "truncated": ((T, B), "bool"),
        "final_values": ((T, B), "float32"),
        "episode_returns": ((T, B), "float64"),
        "training_returns": ((T, B), "float64"),
        "episode_lengths": ((T, B), "int64"),
    }
    assert ring.final_obs.shape == (B, 5, 2)


def test_gaussian_actions_are_floats() -> None:
    spec = EnvSpec((2,), "float32", ActionSpec("gaussian", low=(-1.0,), high=(1.0,)))
    fields = {field.name: field for field in slot_fields(spec)}
    assert fields["actions"].layout(T, B) == ((T, B, 1), "float32")


def test_a_new_ring_is_poisoned() -> None:
    # A NaN spreads to the loss, and integer poison is no valid action, version or length.
    # Booleans are neither True nor False, which shows in their bytes.
    for slot in make_ring().slots:
        for name, array in slot.arrays().items():
            if array.dtype.kind == "b":
                assert (array.view(np.uint8) > 1).all(), name
            if array.dtype.kind == "f":
                assert np.isnan(array).all(), name
            elif array.dtype.kind == "i":
                assert (array < -(2**60)).all(), name


@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_a_boolean_that_was_never_written_is_found(name: str) -> None:
    filled, fresh = make_ring().slots
    fill(filled)
    filled.check_filled()
    getattr(filled, name)[1:2, 2] = getattr(fresh, name)[1:2, 2]
    with pytest.raises(AssertionError, match=f"slot.{name}"):
        filled.check_filled()


def test_the_order_of_the_fields_is_that_of_the_hash() -> None:
    assert tuple(field.name for field in slot_fields(SPEC)) == NAMES
    assert tuple(make_ring().slot(0).arrays()) == NAMES


def test_a_new_field_is_hashed_in_its_place_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    # One line in `slot_fields` puts an array into the memory, the hash and `check_filled`.
    place = NAMES.index("rewards")

    def with_another(spec: EnvSpec, memory_width: int) -> tuple[Field, ...]:
        fields = slot_fields(spec, memory_width)
        return *fields[:place], Field("masks", (3,), "bool"), *fields[place:]

    monkeypatch.setattr(ring_module, "slot_fields", with_another)
    filled, fresh = make_ring().slots
    names = [*NAMES[:place], "masks", *NAMES[place:]]
    masks = filled.arrays()["masks"]
    assert list(filled.arrays()) == names
    assert (masks.shape, masks.dtype.name) == ((T, B, 3), "bool")
    fill(filled)
    data = b"".join(filled.arrays()[name].tobytes() for name in names)
    assert filled.sha256() == hashlib.sha256(data).hexdigest()
    filled.check_filled()
    masks[2, 1, :1] = fresh.arrays()["masks"][2, 1, :1]
    with pytest.raises(AssertionError, match=r"slot\.masks"):
        filled.check_filled()


def test_activations_stand_beside_the_slots() -> None:
    # Activations are poisoned like slots, but are not hashed and saved with them.
    assert make_ring().activations(0) == []
    ring = Ring(SPEC, T, B, [((3, 2), "float32"), ((7,), "uint16")])
    assert {a.shape for a in ring.activations(5)} == {(T, B, 3, 2), (T, B, 7)}
    for rollout in (5, 6):
        floats, bfloats = ring.activations(rollout)
        assert np.isnan(floats).all()
        assert as_tensor(bfloats).isnan().all()
    ring.activations(5)[0][:] = 1
    ring.activations(5)[1][:] = 1
    assert (ring.activations(7)[1] == 1).all()
    assert np.isnan(ring.activations(6)[0]).all()
    assert ring.slot(5).arrays().keys() == set(NAMES)


def test_a_slot_keeps_the_memories_before_its_first_row() -> None:
    ring = Ring(SPEC, T, B, memory_width=3)
    assert tuple(ring.slot(0).arrays()) == ("memories", *NAMES)
    assert not ring.memories.any(), "all episodes begin"
    ring.memories[:] = before = np.arange(3 * B).reshape(B, 3)
    ring.begin(4, np.zeros((B, 5, 2)), np.zeros((T, B, 2)))
    ring.memories[:] = 7
    memories = ring.slot(4).memories
    assert memories is not None
    assert memories.dtype == np.float32
    assert np.array_equal(memories, before[None])


def test_rollouts_take_turns() -> None:
    ring = make_ring()
    for slot in ring.slots:
        fill(slot)
    kept = ring.slot(6).sha256()
    obs, noise = np.full((B, 5, 2), 9), np.full((T, B, 2), 0.25)
    ring.begin(7, obs, noise)
    assert ring.rollout == 7
    assert (ring.slot(7).obs[0] == 9).all()
    assert not (ring.slot(7).obs[1:] == 9).any()
    assert (ring.slot(7).noise == 0.25).all()
    assert ring.slot(6).sha256() == kept
    assert ring.slot(8) is ring.slot(6)
    assert ring.slot(8) is not ring.slot(7)


def test_the_hash_is_of_all_bytes_in_order_and_of_what_came_before() -> None:
    slot = make_ring().slot(0)
    fill(slot)
    data = b"".join(getattr(slot, name).tobytes() for name in NAMES)
    assert slot.sha256() == hashlib.sha256(data).hexdigest()
    previous = hashlib.sha256(b"slot 0").digest()
    assert slot.sha256(previous.hex()) == hashlib.sha256(previous + data).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_the_hash_feels_every_bit(name: str) -> None:
    slot = make_ring().slot(0)
    fill(slot)
    before = slot.sha256()
    array = getattr(slot, name)
    array.reshape(-1).view("u1")[-array.itemsize] ^= 1
    assert slot.sha256() != before


def test_episodes_come_in_order_of_address() -> None:
    slot = make_ring().slot(0)
    slot.episode_lengths[:] = 0
    slot.episode_returns[:] = 0
    slot.training_returns[:] = 0
    for t, c, *episode in ((2, 0, 5.0, 1.0, 7), (0, 3, -1.0, 0.5, 2), (0, 1, 0.0, 2.0, 9)):
        cells = (slot.episode_returns, slot.training_returns, slot.episode_lengths)
        for array, value in zip(cells, episode, strict=True):
            array[t, c] = value
    ended = [(0, (0.0, 2.0, 9)), (0, (-1.0, 0.5, 2)), (2, (5.0, 1.0, 7))]
    assert list(slot.episodes()) == ended


def fill_in_child(ring: Ring, store: ParameterStore, board: Board, control: Connection) -> None:
    """Does the work of executors and actors: finds the rollout, reads parameters, writes cells."""
    slot = ring.slot(ring.rollout)
    slot.rewards[1, 2] = store.values["weight"].sum()
    slot.versions[0, 0] = store.version
    ring.final_obs[3] = 200
    board.enter(1)
    control.send(None)
    control.recv()
    board.leave(1)


def test_a_spawned_child_shares_everything() -> None:
    ring, store, board = make_ring(), ParameterStore({"weight": ((2, 5), "float32")}), Board(2)
    ring.begin(5, np.zeros((B, 5, 2)), np.zeros((T, B, 2)))
    store.place(5)["weight"][:] = np.arange(10).reshape(2, 5)
    store.publish(5)
    ours, theirs = CONTEXT.Pipe()
    child = CONTEXT.Process(target=fill_in_child, args=(ring, store, board, theirs))
    child.start()
    ours.recv()
    assert ring.slot(5).rewards[1, 2] == 45
    assert ring.slot(5).versions[0, 0] == 5
    assert (ring.final_obs[3] == 200).all()
    assert board.since()[1] > 0
    ours.send(None)
    child.join()
    assert child.exitcode == 0
    assert board.since()[1] == 0
    assert board.busy_s()[1] > 0


def test_the_store_starts_without_a_version() -> None:
    store = ParameterStore({"0.weight": ((2,), "float32"), "0.count": ((), "int64")})
    assert store.version == -1
    store.place(0)["0.weight"][:] = [1.5, -2.0]
    store.place(0)["0.count"][...] = 2**40
    for array in store.place(1).values():
        array[...] = 9
    store.publish(0)
    assert store.version == 0
    assert {n: array.tolist() for n, array in store.values.items()} == {
        "0.weight": [1.5, -2.0],
        "0.count": 2**40,
    }


def test_the_board_adds_up_busy_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    board = Board(2)

    def wait(seconds: float) -> None:
        now[0] += seconds

    wait(5)
    board.enter(0)
    wait(2)
    assert board.since()[0] == 105
    # The second piece of work has its own start; both count as busy time.
    board.enter(0)
    wait(3)
    assert board.since()[0] == 107
    board.leave(0)
    wait(50)
    assert board.since()[0] == 0
    board.leave(0)
    assert board.busy_s().tolist() == [5, 0]
