"""Checkpoint files: named arrays and one JSON document, with a checksum and without code.

    magic (8 bytes) | version (uint32) | frame length (uint64) | SHA-256 of the frame | zstd frame

All numbers are little-endian. The frame contains a safetensors payload with the arrays. The
payload's metadata has one entry, `meta`, which is the document. Nothing in the file is executed,
and the frame is decoded only after its checksum has been verified.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable, Iterator
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
FORMAT_VERSION = 3
_HEADER = struct.Struct("<8sIQ32s")
_CHUNK = 1 << 20
# Measured on 58 MB of stacked Atari frames (129 x 16 x 84 x 84 x 4): levels 1 and 3 both take
# 11-30 ms. With a window that spans several env steps, level 1 also compresses as well as
# level 3: to 0.3 MB for Pong and 1.3 MB for Space Invaders (2.4 MB with level 1's default window).
# On float32 parameters, which hardly compress, level 1 takes two thirds of level 3's time.
_COMPRESSION = zstandard.ZstdCompressionParameters.from_level(1, window_log=22, write_checksum=True)
# A payload may be larger than _SMALL only if the file has at least one byte for _MOST_EXPANSION
# bytes of it, so that a small file cannot fill the memory. Files that compress better are padded.
# Screens of Pong, which compress well, are 190 times larger than their file.
_SMALL = 1 << 27
_MOST_EXPANSION = 1000
_MOST_DEPTH = 50
# Exceptions that decoding can raise if the checksum matches but another program wrote the frame.
_DECODING_ERRORS = (
    zstandard.ZstdError,
    SafetensorError,
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


# Tests of values that are used before a resume compares the content with its run.
_KNOWN_VALUES: dict[str, Callable[[Any], bool]] = {
    "env_steps": lambda value: type(value) is int and value >= 0,
    "metric": lambda value: value is None or type(value) in (int, float),
    "seconds": lambda value: type(value) in (int, float),
    "config": lambda value: isinstance(value, dict),
    "env_spec": lambda value: isinstance(value, dict),
}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        arrays: arrays by name, of any shape (including zero-size and 0-d) and any boolean, integer
            or floating-point dtype that safetensors supports. `htsrl_cli.checkpoints.state` defines
            the names of a run's arrays.
        meta: a document of values that JSON can represent. Floats are restored exactly; tuples
            become lists.
    """

    arrays: dict[str, npt.NDArray[Any]]
    meta: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `checkpoint` to `path` atomically.

    Raises:
        OSError: the file cannot be written; a previous file at `path` is unchanged.
    """
    # safetensors needs contiguous arrays. `ascontiguousarray` would make 0-d arrays 1-d.
    arrays = {name: np.asarray(value, order="C") for name, value in checkpoint.arrays.items()}
    payload = save_safetensors(arrays, metadata={"meta": json.dumps(checkpoint.meta)})
    write_durably(path, lambda file: _write_frame(file, payload))


def load_checkpoint(path: Path) -> Checkpoint:
    """Verifies and reads a file, and upgrades its content to the current format version.

    The arrays are writable and independent of the file.

    Raises:
        CheckpointError: the file does not exist, cannot be read, is not a checkpoint, is damaged,
            or has an unknown format version.
    """
    with _verified(path) as (file, version):
        payload = _decompress(file)
        return Checkpoint(*upgrade(version, load_safetensors(payload), _decode_meta(payload)))


def verify_checkpoint(path: Path) -> None:
    """Verifies a file's header, length and checksum without decoding its content.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    with _verified(path):
        pass


def read_meta(path: Path) -> dict[str, Any]:
    """Verifies a file and returns its document as stored, without upgrading it.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    with _verified(path) as (file, _):
        (length,) = struct.unpack("<Q", _decompress(file, 8))
        file.seek(_HEADER.size)
        return _decode_meta(_decompress(file, 8 + length))


def missing(path: Path) -> CheckpointError:
    """Returns the error for a path that does not exist."""
    return CheckpointError(f"{path} does not exist: give a run folder or a checkpoint file")


class _HashedFile:
    """A writer that passes chunks on to `file` and computes their total length and SHA-256.

    Attributes:
        length: number of bytes so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.length = 0

    def write(self, chunk: bytes) -> int:
        self._file.write(chunk)
        self._sha256.update(chunk)
        self.length += len(chunk)
        return len(chunk)

    def header(self) -> bytes:
        return _HEADER.pack(MAGIC, FORMAT_VERSION, self.length, self._sha256.digest())


def _write_frame(file: BinaryIO, payload: bytes) -> None:
    file.write(bytes(_HEADER.size))
    hashed = _HashedFile(file)
    compressor = zstandard.ZstdCompressor(compression_params=_COMPRESSION)
    # The frame is compressed while it is written, so it is never in memory as a whole.
    with compressor.stream_writer(
        hashed,  # type: ignore[arg-type]
        size=len(payload),
        write_size=_CHUNK,
        closefd=False,
    ) as writer:
        writer.write(payload)
    if len(payload) > _SMALL:
        # The padding lies behind the end of the frame, where nothing reads it.
        hashed.write(bytes(max(0, -(-len(payload) // _MOST_EXPANSION) - hashed.length)))
    file.seek(0)
    file.write(hashed.header())


@contextmanager
def _verified(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Verifies a file; yields the file, positioned at its frame, and its format version.

    Errors that reading or decoding raises inside the `with` block also become a `CheckpointError`.
    """
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
            raise CheckpointError(f"{path} is no regular file: give a checkpoint file")
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
        raise CheckpointError(
            f"{path} is not a checkpoint of htsrl: give a run folder or a checkpoint file"
        )
    if len(head) < _HEADER.size:
        raise _truncated(path)
    _, version, length, digest = _HEADER.unpack(head)
    if not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, but this htsrl reads only versions 1 to "
            f"{FORMAT_VERSION}: use the version of htsrl that wrote it"
        )
    if os.fstat(file.fileno()).st_size < _HEADER.size + length:
        raise _truncated(path)
    if _sha256(file) != digest:
        raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
    file.seek(_HEADER.size)
    return int(version)


def _sha256(file: BinaryIO) -> bytes:
    """Returns the SHA-256 of the rest of `file`."""
    sha256 = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
    return sha256.digest()


def _decompress(file: BinaryIO, size: int = -1) -> bytes:
    """Decompresses the frame at the file's position into the payload, or its first `size` bytes."""
    position = file.tell()
    # The frame's header contains the payload's size, so a single allocation is enough.
    whole = zstandard.get_frame_parameters(file.read(32)).content_size
    file.seek(position)
    most = max(_SMALL, _MOST_EXPANSION * os.fstat(file.fileno()).st_size)
    if whole > most or size > whole:
        raise ValueError(
            f"its {max(whole, size):,} bytes of content are more than the file can hold"
        )
    size = whole if size < 0 else size
    with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as reader:
        payload = reader.read(size)
    if len(payload) != size:
        raise ValueError("its content ends too early")
    return payload


def _decode_meta(payload: bytes) -> dict[str, Any]:
    """Returns the document from the head of a payload.

    A payload begins with the length of the head (uint64), followed by the head's JSON text.
    """
    (length,) = struct.unpack_from("<Q", payload)
    head = json.loads(payload[8 : 8 + length])
    meta = json.loads(head["__metadata__"]["meta"])
    if not isinstance(meta, dict):
        raise TypeError(f"its document must be an object, but is of type {type(meta).__name__}")
    _check_depth(meta)
    for name, is_known in _KNOWN_VALUES.items():
        if name in meta and not is_known(meta[name]):
            raise TypeError(f"its value {name} is of type {type(meta[name]).__name__}")
    return meta


def _check_depth(meta: dict[str, Any]) -> None:
    """Raises `ValueError` if a document is nested so deep that recursive code could fail."""
    level: list[Any] = [meta]
    for _ in range(_MOST_DEPTH):
        nested = [value.values() if isinstance(value, dict) else value for value in level]
        level = [v for values in nested for v in values if isinstance(v, dict | list)]
        if not level:
            return
    raise ValueError(f"its document is nested more than {_MOST_DEPTH} levels deep")


def _truncated(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is truncated: its end is missing")
