"""Checkpoint files: named arrays and one JSON document, checked and free of code.

    magic (8 bytes) | version (uint32) | length of the frame (uint64) | its SHA-256 | zstd frame

All numbers are little-endian. The frame holds a safetensors payload whose metadata has one entry,
`meta`. Nothing in the file is executed, and nothing but the magic is trusted before the checksum
has been compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from htsrl_cli.checkpoints.upgrade import upgrade
from htsrl_cli.durable import write_durably
from htsrl_cli.errors import CheckpointError

MAGIC = b"\x89HTSRL\r\n"
FORMAT_VERSION = 2
_HEADER = struct.Struct("<8sIQ32s")
_CHUNK = 1 << 20
# Measured on 58 MB of stacked Atari frames (129 x 16 x 84 x 84 x 4): level 1 takes 11-30 ms like
# level 3, and with a window that spans several time steps its files are as small (0.3 MB for
# Pong, 1.3 MB for Space Invaders, 2.4 MB with the level's own window); on float32 parameters, which
# hardly compress, it takes two thirds of level 3's time.
_COMPRESSION = zstandard.ZstdCompressionParameters.from_level(1, window_log=22)
# What reading a frame raises that has the right checksum but was not written by this module.
_DECODING_ERRORS = (
    zstandard.ZstdError,
    SafetensorError,
    struct.error,
    ArithmeticError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file.

    Attributes:
        arrays: by name; any shape, zero-size and 0-d included; no object or string dtypes.
        meta: a JSON-able document. Floats survive exactly; tuples come back as lists.
    """

    arrays: dict[str, npt.NDArray[Any]]
    meta: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `checkpoint` to `path`, which appears whole or not at all.

    Raises:
        OSError: it could not be written; a previous file of that name is untouched.
    """
    # safetensors reads memory as if it were contiguous; `ascontiguousarray` would turn 0-d to 1-d.
    arrays = {name: np.asarray(value, order="C") for name, value in checkpoint.arrays.items()}
    payload = save_safetensors(arrays, metadata={"meta": json.dumps(checkpoint.meta)})
    write_durably(path, lambda file: _write_frame(file, payload))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies a file; the arrays are writable and belong to the caller.

    Raises:
        CheckpointError: one line: missing, unreadable, not a checkpoint, or damaged.
    """
    with _verified(path) as (file, version):
        payload = _decompress(file)
        return Checkpoint(*upgrade(version, load_safetensors(payload), _decode_meta(payload)))


def verify_checkpoint(path: Path) -> None:
    """Compares a file's length and checksum, without reading what it holds.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    with _verified(path):
        pass


def read_meta(path: Path) -> dict[str, Any]:
    """Reads and verifies a file's document, without its arrays, as it was written.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    with _verified(path) as (file, _):
        (length,) = struct.unpack("<Q", _decompress(file, 8))
        file.seek(_HEADER.size)
        return _decode_meta(_decompress(file, 8 + length))


def missing(path: Path) -> CheckpointError:
    """Returns the error for a path at which there is nothing."""
    return CheckpointError(f"{path} does not exist: give a run folder or a checkpoint file")


class _HashedFile:
    """Passes written chunks on to `file`, with their length and SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._length = 0

    def write(self, chunk: bytes) -> int:
        self._file.write(chunk)
        self._sha256.update(chunk)
        self._length += len(chunk)
        return len(chunk)

    def header(self) -> bytes:
        return _HEADER.pack(MAGIC, FORMAT_VERSION, self._length, self._sha256.digest())


def _write_frame(file: BinaryIO, payload: bytes) -> None:
    file.write(bytes(_HEADER.size))
    hashed = _HashedFile(file)
    compressor = zstandard.ZstdCompressor(compression_params=_COMPRESSION)
    # Compressed as it is written: the frame never lies in memory as a whole.
    with compressor.stream_writer(
        hashed,  # type: ignore[arg-type]
        size=len(payload),
        write_size=_CHUNK,
        closefd=False,
    ) as writer:
        writer.write(payload)
    file.seek(0)
    file.write(hashed.header())


@contextmanager
def _verified(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Yields `path` open at the start of its frame and its format, once its checksum has fitted.

    What goes wrong in the block, too, becomes a `CheckpointError`.
    """
    try:
        with open(path, "rb") as file:
            yield file, _verify(path, file)
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except _DECODING_ERRORS as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} cannot be decoded: {cause}") from error


def _verify(path: Path, file: BinaryIO) -> int:
    head = file.read(_HEADER.size)
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise CheckpointError(f"{path} is not a checkpoint of htsrl")
    if len(head) < _HEADER.size:
        raise _truncated(path)
    _, version, length, digest = _HEADER.unpack(head)
    if not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this htsrl reads 1 to {FORMAT_VERSION}: "
            "use the version of htsrl that wrote it"
        )
    if os.fstat(file.fileno()).st_size < _HEADER.size + length:
        raise _truncated(path)
    if _sha256(file) != digest:
        raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
    file.seek(_HEADER.size)
    return int(version)


def _sha256(file: BinaryIO) -> bytes:
    """Returns the digest of the rest of `file`."""
    sha256 = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
    return sha256.digest()


def _decompress(file: BinaryIO, size: int = -1) -> bytes:
    """The frame's payload, or its first `size` bytes."""
    position = file.tell()
    if size < 0:
        # The frame knows its size: one allocation instead of a list of chunks to be joined.
        size = zstandard.get_frame_parameters(file.read(32)).content_size
        file.seek(position)
    with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as reader:
        return reader.read(size)


def _decode_meta(payload: bytes) -> dict[str, Any]:
    """The JSON document in a payload's head: length (uint64), then safetensors' own JSON."""
    (length,) = struct.unpack_from("<Q", payload)
    head = json.loads(payload[8 : 8 + length])
    meta: dict[str, Any] = json.loads(head["__metadata__"]["meta"])
    return meta


def _truncated(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is truncated: its end is missing")
