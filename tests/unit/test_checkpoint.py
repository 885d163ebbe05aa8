"""Tests of checkpoint files: exact, refused if damaged, and never executed."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from htsrl_cli.checkpoints import file as checkpoint_module
from htsrl_cli.checkpoints.file import MAGIC, Checkpoint, load_checkpoint, save_checkpoint
from htsrl_cli.checkpoints.state import State, split
from htsrl_cli.checkpoints.store import CheckpointStore
from htsrl_cli.checkpoints.upgrade import upgrade_config
from htsrl_cli.config.plain import to_plain
from htsrl_cli.errors import CheckpointError
from tests import sections
from tests.unit.checkpoint_files import steps, tiny

HEADER_SIZE = 52


@pytest.fixture
def example() -> Checkpoint:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "params/trunk.fc.weight": rng.standard_normal((7, 5)).astype(np.float32),
        "slot/obs": rng.integers(0, 256, (3, 2, 4, 4), dtype=np.uint8),
        "slot/done": np.array([[True, False], [False, True]]),
        "slot/action": np.arange(6, dtype=np.int64).reshape(2, 3),
        "stats": np.array([0.1, np.nan, np.inf, -0.0, 5e-324]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2**53 + 1, np.int64),
    }
    return Checkpoint(arrays, {"env_steps": 12, "x": 0.1 + 0.2, "nested": {"list": [1, None, "ä"]}})


def test_arrays_and_meta_come_back_bit_for_bit(tmp_path: Path, example: Checkpoint) -> None:
    save_checkpoint(tmp_path / "a.ckpt", example)
    loaded = load_checkpoint(tmp_path / "a.ckpt")
    assert loaded.meta == example.meta
    assert loaded.arrays.keys() == example.arrays.keys()
    for name, array in example.arrays.items():
        assert loaded.arrays[name].dtype == array.dtype, name
        assert loaded.arrays[name].shape == array.shape, name
        assert loaded.arrays[name].tobytes() == array.tobytes(), name
        assert loaded.arrays[name].flags.writeable, name


def in_format_1(path: Path, checkpoint: Checkpoint) -> Path:
    """Writes a file in the format of htsrl's first versions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "FORMAT_VERSION", 1)
        save_checkpoint(path, checkpoint)
    return path


OLD_CONFIG = {"seed": 1, "algo": {"name": "a2c", "gamma": 0.9, "hidden_sizes": [7]}}
NEW_CONFIG = {
    "seed": 1,
    "algo": {"name": "a2c", "squash": "clip", "gamma": 0.9},
    "network": {
        "name": "auto",
        "memory": "none",
        "memory_size": 256,
        "hidden_sizes": [7],
        "activation": "tanh",
        "separate_value": True,
        "linear_kernel": "convolution",
    },
}


# Attributes of environments that early checkpoints lack.
ADDED_TO_SPEC = {
    "obs_max": 255,
    "has_masks": False,
    "normalize_obs": False,
    "normalize_reward": False,
}


def test_a_checkpoint_of_format_1_is_read_as_parts(tmp_path: Path) -> None:
    # The checkpoint has all parts of a run: learner, environments, slot, rollouts and log.
    renamed = {
        "params/0.trunk.layers.0.weight": "learner/params/0.trunk.layers.0.weight",
        "optimizer/step/0.log_std": "learner/optimizer/step/0.log_std",
        "optimizer/exp_avg/0.log_std": "learner/optimizer/exp_avg/0.log_std",
        "previous/0.trunk.layers.0.weight": "learner/previous/0.trunk.layers.0.weight",
        "env/0": "envs/0",
        "env/11": "envs/11",
        "obs": "envs/obs",
        "slot/obs": "slot/obs",
        "slot/rewards": "slot/rewards",
    }
    arrays = {old: np.full((2, 3), i) for i, old in enumerate(renamed)}
    kept = {
        "env_spec": {"obs_dtype": "uint8", **ADDED_TO_SPEC},
        "packages": {"ale-py": "1"},
        "metric": 0.5,
    }
    log = {"env_steps": 640, "seconds": 0.1 + 0.2, "recent": [1.0]}
    meta = {
        **kept,
        "env_spec": {"obs_dtype": "uint8"},
        "env_steps": 640,
        "interval": 5,
        "num_updates": 4,
        "num_episodes": [3, 4],
        "training_returns": [0.5, -1.0],
        "rollouts_sha256": "ab",
        "log": log,
        "config": OLD_CONFIG,
    }
    path = in_format_1(tmp_path / "old.ckpt", Checkpoint(dict(arrays), meta))
    read = load_checkpoint(path)
    assert read.arrays.keys() == set(renamed.values())
    for old, new in renamed.items():
        assert read.arrays[new].tobytes() == arrays[old].tobytes(), new
    assert read.meta == {
        **kept,
        "env_steps": 640,
        "interval": 5,
        "parts": {
            "learner": {"num_updates": 4},
            "envs": {"num_episodes": [3, 4], "training_returns": [0.5, -1.0]},
            "rollouts": {"sha256": "ab"},
            "log": log,
        },
        "config": NEW_CONFIG,
    }
    whole = State(read.arrays, read.meta["parts"])
    assert split(whole, "learner").arrays.keys() == {
        name.removeprefix("learner/") for name in renamed.values() if name.startswith("learner/")
    }
    assert split(whole, "envs").arrays.keys() == {"0", "11", "obs"}
    assert split(whole, "slot").arrays.keys() == {"obs", "rewards"}
    # Saved in the current format, the upgraded content is read back unchanged.
    save_checkpoint(tmp_path / "new.ckpt", read)
    again = load_checkpoint(tmp_path / "new.ckpt")
    assert (again.meta, again.arrays.keys()) == (read.meta, read.arrays.keys())


def test_a_policy_of_format_1_is_read_without_parts(tmp_path: Path) -> None:
    # Checkpoints made for evaluation had parameters only and belonged to no barrier.
    meta = {"env_steps": 64, "seconds": 1.5, "filmed": False, "config": OLD_CONFIG}
    checkpoint = Checkpoint({"params/0.log_std": np.zeros(2)}, meta)
    read = load_checkpoint(in_format_1(tmp_path / "old.ckpt", checkpoint))
    assert read.arrays.keys() == {"learner/params/0.log_std"}
    assert read.meta == meta | {"config": NEW_CONFIG}


@pytest.mark.parametrize(("reevaluate", "correction"), [(True, "proximal"), (False, "none")])
def test_a_run_before_corrections_keeps_what_it_did(reevaluate: bool, correction: str) -> None:
    algo = to_plain(sections.ppo(correction=correction))
    new = ("correction", "max_weight", "vtrace_rho", "vtrace_c")
    before = {key: value for key, value in algo.items() if key not in new}
    old = {"seed": 1, "algo": before | {"reevaluate": reevaluate}}
    assert upgrade_config(old) == {"seed": 1, "algo": algo}


def test_the_present_format_is_read_as_it_was_written(tmp_path: Path) -> None:
    # Names that had a meaning in format 1 are ordinary names now.
    network = {"activation": "relu", "separate_value": False, "memory": "gru", "memory_size": 7}
    config = NEW_CONFIG | {"network": {"name": "auto", "linear_kernel": "product", **network}}
    checkpoint = Checkpoint({"obs": np.zeros(2), "env/0": np.ones(1)}, {"config": config})
    save_checkpoint(tmp_path / "a.ckpt", checkpoint)
    read = load_checkpoint(tmp_path / "a.ckpt")
    assert (read.arrays.keys(), read.meta) == (checkpoint.arrays.keys(), checkpoint.meta)


def test_strided_arrays_are_saved_by_value(tmp_path: Path) -> None:
    base = np.arange(24).reshape(4, 6)
    arrays = {"transposed": base.T, "strided": base[::2, 1::3], "reversed": base[::-1]}
    save_checkpoint(tmp_path / "a.ckpt", Checkpoint(dict(arrays), {}))
    for name, array in load_checkpoint(tmp_path / "a.ckpt").arrays.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_equal_checkpoints_are_equal_files(tmp_path: Path, example: Checkpoint) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        save_checkpoint(tmp_path / name, example)
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_frames_compress(tmp_path: Path) -> None:
    frames = np.zeros((129, 16, 84, 84), np.uint8)
    frames[:, :, 40:44, 10:20] = 255
    save_checkpoint(tmp_path / "a.ckpt", Checkpoint({"obs": frames}, {}))
    assert (tmp_path / "a.ckpt").stat().st_size < frames.nbytes / 50
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "a.ckpt").arrays["obs"], frames)


def test_every_truncation_is_refused(tmp_path: Path, example: Checkpoint) -> None:
    save_checkpoint(tmp_path / "whole.ckpt", example)
    content = (tmp_path / "whole.ckpt").read_bytes()
    path = tmp_path / "cut.ckpt"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            load_checkpoint(path)


def test_every_flipped_or_added_byte_is_refused(tmp_path: Path, example: Checkpoint) -> None:
    save_checkpoint(tmp_path / "whole.ckpt", example)
    content = (tmp_path / "whole.ckpt").read_bytes()
    path = tmp_path / "flipped.ckpt"
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_errors_are_one_line_and_say_what_is_wrong(tmp_path: Path) -> None:
    future = tmp_path / "future.ckpt"
    future.write_bytes(struct.pack("<8sIQ32s", MAGIC, 7, 0, b""))
    (tmp_path / "text.ckpt").write_text("hello")
    cases = {
        tmp_path / "none.ckpt": "does not exist",
        tmp_path / "text.ckpt": "is not a checkpoint",
        tmp_path: "cannot be read: Is a directory",
        future: "format version 7, but this htsrl reads only versions 1 to",
    }
    for path, words in cases.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


class _Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def framed(frame: bytes) -> bytes:
    """Returns a file with the right checksum for any frame."""
    digest = hashlib.sha256(frame).digest()
    return struct.pack("<8sIQ32s", MAGIC, 1, len(frame), digest) + frame


def test_hostile_pickles_execute_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    hostile = pickle.dumps(_Hostile(victim))
    path = tmp_path / "hostile.ckpt"
    for content in (hostile, framed(hostile), framed(zstandard.compress(hostile))):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    assert not victim.exists()
    pickle.loads(hostile)
    assert victim.exists(), "the pickle was harmless and the test proved nothing"


@pytest.mark.parametrize("meta", [{}, {"meta": "{"}, {"other": "{}"}])
def test_well_formed_files_without_meta_are_refused(tmp_path: Path, meta: dict[str, str]) -> None:
    head = json.dumps({"__metadata__": meta}).encode()
    payload = struct.pack("<Q", len(head)) + head
    path = tmp_path / "checkpoints" / "step_000000000001.ckpt"
    path.parent.mkdir()
    path.write_bytes(framed(zstandard.compress(payload)))
    with pytest.raises(CheckpointError, match="cannot be decoded"):
        load_checkpoint(path)
    CheckpointStore(tmp_path, keep=1).save(2, None, tiny())
    assert steps(tmp_path) == [2]


def test_a_huge_claimed_size_is_refused(tmp_path: Path) -> None:
    # A frame header that claims 2**63 bytes: single segment, 8-byte content size.
    frame = b"\x28\xb5\x2f\xfd" + bytes([0b1110_0000]) + struct.pack("<Q", 2**63) + b"\x01\0\0"
    path = tmp_path / "bomb.ckpt"
    path.write_bytes(framed(frame))
    with pytest.raises(CheckpointError, match="cannot be decoded"):
        load_checkpoint(path)
