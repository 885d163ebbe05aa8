"""Random changes of a checkpoint whose checksum is made valid again: an error or the same content.

Bytes of the frame, and values and arrays of its content, are changed by a seeded generator. The
environment variable HTSRL_FUZZ sets another seed.
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from htsrl_cli.checkpoints.file import MAGIC, Checkpoint, save_checkpoint
from htsrl_cli.errors import CheckpointError
from tests.conftest import Htsrl
from tests.unit.test_crafted_checkpoints import Resumable

SEED = int(os.environ.get("HTSRL_FUZZ", "0"))
HEADER_SIZE = 52
NUM_OF_FRAME = 150
NUM_OF_CONTENT = 150
NUM_OF_COMMANDS = 30
STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    1e308,
    float("nan"),
    "",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": [1]},
)


@pytest.fixture(scope="module")
def resumable(tmp_path_factory: pytest.TempPathFactory) -> Resumable:
    return Resumable(tmp_path_factory.mktemp("run"))


def with_changed_frame(content: bytes, rng: random.Random) -> bytes:
    """Returns a file whose frame has changed, cut, added or repeated bytes."""
    frame = bytearray(content[HEADER_SIZE:])
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        # The beginning holds the sizes, so it is changed more often than other places.
        at = rng.randrange(rng.choice((20, 200, len(frame))))
        kind = rng.randrange(5)
        if kind == 0:
            frame[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            frame[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**64 - 1)))
        elif kind == 2:
            del frame[at : at + rng.randrange(1, 300)]
        elif kind == 3:
            frame[at:at] = rng.randbytes(rng.randrange(1, 300))
        else:
            frame[at:at] = frame[at : at + rng.randrange(1, 300)]
    version = rng.choice((1, 2, 3, 3, 3))
    digest = hashlib.sha256(frame).digest()
    return struct.pack("<8sIQ32s", MAGIC, version, len(frame), digest) + frame


def places(value: Any) -> list[tuple[Any, Any]]:
    """Returns every container below `value`, with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [p for key in keys for p in places(value[key])]


def changed_content(checkpoint: Checkpoint, rng: random.Random) -> Checkpoint:
    """Returns a checkpoint in which a value or an array has another type or form, or is missing."""
    arrays, meta = dict(checkpoint.arrays), copy.deepcopy(checkpoint.meta)
    if rng.random() < 0.6:
        container, key = rng.choice(places(meta))
        if rng.random() < 0.3:
            del container[key]
        else:
            container[key] = rng.choice(STRANGE)
        return Checkpoint(arrays, meta)
    name = rng.choice(sorted(arrays))
    array = arrays.pop(name)
    changes = (
        None,
        array[..., None],
        array.ravel()[: rng.randrange(max(1, array.size))],
        array.astype(rng.choice(("bool", "int8", "uint32", "float64", "float16"))),
        np.zeros((3, *array.shape), array.dtype),
    )
    changed = rng.choice(changes)
    if changed is not None:
        arrays[name] = changed
    return Checkpoint(arrays, meta)


def is_same(first: Checkpoint, second: Checkpoint) -> bool:
    """Returns True if what decides the rest of a run is equal."""
    return first.arrays.keys() == second.arrays.keys() and all(
        array.tobytes() == second.arrays[name].tobytes() for name, array in first.arrays.items()
    )


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_changed_frames_are_refused_or_read_as_before(resumable: Resumable, tmp_path: Path) -> None:
    rng, content = random.Random(SEED), resumable.path.read_bytes()
    before, refused = peak_kilobytes(), 0
    path = tmp_path / "a.ckpt"
    for number in range(NUM_OF_FRAME):
        path.write_bytes(with_changed_frame(content, rng))
        try:
            found = resumable.check(path)
        except CheckpointError:
            refused += 1
            continue
        assert is_same(found, resumable.checkpoint), number
        assert found.meta == resumable.checkpoint.meta, number
    assert refused > NUM_OF_FRAME // 2
    assert peak_kilobytes() - before < 1 << 20


def test_changed_content_is_refused_or_decides_nothing(
    resumable: Resumable, tmp_path: Path
) -> None:
    """A document may change in values that a resume does not use, such as the saved metric."""
    rng = random.Random(SEED)
    before, refused = peak_kilobytes(), 0
    path = tmp_path / "a.ckpt"
    for _ in range(NUM_OF_CONTENT):
        save_checkpoint(path, changed_content(resumable.checkpoint, rng))
        try:
            resumable.check(path)
        except CheckpointError:
            refused += 1
    assert refused > NUM_OF_CONTENT // 2
    assert peak_kilobytes() - before < 1 << 20


@pytest.mark.slow(reason="starts 30 commands")
def test_commands_refuse_or_read_changed_files(
    resumable: Resumable, htsrl: Htsrl, tmp_path: Path
) -> None:
    rng, content = random.Random(SEED), resumable.path.read_bytes()
    for number in range(NUM_OF_COMMANDS):
        path = tmp_path / f"{number}.ckpt"
        if number % 2:
            path.write_bytes(with_changed_frame(content, rng))
        else:
            save_checkpoint(path, changed_content(resumable.checkpoint, rng))
        if number % 3:
            done = htsrl("eval", f"checkpoint={path}", "episodes=1", "greedy=true")
        else:
            done = htsrl("train", f"resume={path}", f"hydra.run.dir=run{number}")
        assert done.returncode in (0, 2), done.stderr
        assert "Traceback" not in done.stderr
        if done.returncode == 2:
            assert done.stderr.splitlines()[-1].startswith("htsrl: error: "), done.stderr
