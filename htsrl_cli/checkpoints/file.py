"""Checkpoint files: named arrays and one JSON document, checked and free of code.

    magic (8 bytes) | version (uint32) | length of the frame (uint64) | its SHA-256 | zstd frame

All numbers are little-endian. The frame holds a safetensors payload whose metadata has one entry,
`meta`. Nothing in the file is executed, and nothing but the magic is trusted before the checksum
has been compared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from htsrl_cli.durable import remove_leftovers, sync_folder, write_durably
from htsrl_cli.errors import CheckpointError

logger = logging.getLogger(__name__)

MAGIC = b"\x89HTSRL\r\n"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIQ32s")
_CHUNK = 1 << 20
# Measured on 58 MB of stacked Atari frames (129 x 16 x 84 x 84 x 4): level 1 takes 11-30 ms like
# level 3, and with a window that spans several time steps its files are as small (0.3 MB for
# Pong, 1.3 MB for Space Invaders, 2.4 MB with the level's own window); on float32 parameters, which
# hardly compress, it takes two thirds of level 3's time.
_COMPRESSION = zstandard.ZstdCompressionParameters.from_level(1, window_log=22)
_NAME = re.compile(r"step_(\d{12})\.ckpt")
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
    """What a file holds.

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
    with _verified(path) as file:
        payload = _decompress(file)
        return Checkpoint(load_safetensors(payload), _decode_meta(payload))


def find_checkpoint(path: Path) -> Path:
    """The file to load for `path`: a file as it is named, or the newest intact one of a run folder.

    Damaged files of a run folder are passed over with a warning each.

    Raises:
        CheckpointError: there is nothing at `path`, or no intact file in the folder.
    """
    if not path.is_dir():
        if not path.exists():
            raise _missing(path)
        return path
    for candidate in sorted(_files(path / "checkpoints").values(), reverse=True):
        try:
            with _verified(candidate):
                return candidate
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    raise CheckpointError(f"{path} holds no intact checkpoint (looked for checkpoints/step_*.ckpt)")


class CheckpointStore:
    """The checkpoints of one run: writes them and keeps the newest few and the best.

    Opening a store removes what a killed process left behind and reads the metrics of the intact
    files, so that the best one is known after a resume, too.

    Args:
        run_dir: the run's folder; the files are `checkpoints/step_<env steps>.ckpt` in it.
        keep: how many of the newest to keep, at least 1.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep
        self._folder.mkdir(parents=True, exist_ok=True)
        sync_folder(run_dir)
        remove_leftovers(self._folder)
        self._metrics = dict(_stored_metrics(self._folder))
        self._unrated: set[int] = set()

    @property
    def unrated(self) -> list[int]:
        """Env steps of the checkpoints that are kept until `rate` says how good they are."""
        return sorted(self._unrated)

    def unrate(self) -> None:
        """Has all checkpoints wait for `rate`, whatever metric they were saved with."""
        self._unrated = set(self._metrics)

    def rate(self, env_steps: int, metric: float | None) -> None:
        """Gives an unrated checkpoint its metric, and drops those no longer kept."""
        self._metrics[env_steps] = metric
        self._unrated.remove(env_steps)
        self._prune()

    def save(
        self, env_steps: int, metric: float | None, checkpoint: Checkpoint, is_rated: bool = True
    ) -> bool:
        """Saves a checkpoint, then drops those no longer kept.

        An `OSError` (a full disk) is logged and leaves all previous files as they are.

        Args:
            env_steps: names the file; one of the same name is replaced.
            metric: higher is better; None or NaN never counts as best. Stored in `meta`.
            checkpoint: is not changed.
            is_rated: the metric is this checkpoint's; else it is kept until `rate` says which is.

        Returns:
            Whether the checkpoint is on the disk.
        """
        meta = checkpoint.meta | {"env_steps": env_steps, "metric": metric}
        path, saved = self.path(env_steps), False
        try:
            save_checkpoint(path, Checkpoint(checkpoint.arrays, meta))
            saved = True
            self._metrics[env_steps] = metric
            if not is_rated:
                self._unrated.add(env_steps)
            self._prune()
        except OSError as error:
            logger.error("checkpoint %s: %s; the previous ones are kept", path, error.strerror)
        return saved

    def path(self, env_steps: int) -> Path:
        """Where the checkpoint at `env_steps` is."""
        return self._folder / f"step_{env_steps:012d}.ckpt"

    def discard_after(self, env_steps: int) -> None:
        """Removes the checkpoints of a future that a resume at `env_steps` will write again."""
        for steps, path in _files(self._folder).items():
            if steps > env_steps:
                path.unlink(missing_ok=True)
                self._metrics.pop(steps, None)
                self._unrated.discard(steps)
        sync_folder(self._folder)

    def _prune(self) -> None:
        kept = set(sorted(self._metrics)[-self._keep :]) | self._best() | self._unrated
        for steps, path in _files(self._folder).items():
            if steps not in kept:
                path.unlink(missing_ok=True)
        self._metrics = {steps: self._metrics[steps] for steps in kept}

    def _best(self) -> set[int]:
        """The step of the highest metric, the earliest of equals; empty without metrics."""
        ranked = [
            (metric, -steps)
            for steps, metric in self._metrics.items()
            if metric is not None and not math.isnan(metric) and steps not in self._unrated
        ]
        return {-max(ranked)[1]} if ranked else set()


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
def _verified(path: Path) -> Iterator[BinaryIO]:
    """Opens `path` at the start of its frame, after comparing length and checksum.

    What goes wrong in the block, too, becomes a `CheckpointError`.
    """
    try:
        with open(path, "rb") as file:
            _verify(path, file)
            yield file
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except _DECODING_ERRORS as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} cannot be decoded: {cause}") from error


def _verify(path: Path, file: BinaryIO) -> None:
    head = file.read(_HEADER.size)
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise CheckpointError(f"{path} is not a checkpoint of htsrl")
    if len(head) < _HEADER.size:
        raise _truncated(path)
    _, version, length, digest = _HEADER.unpack(head)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this htsrl reads {FORMAT_VERSION}: "
            "use the version of htsrl that wrote it"
        )
    if os.fstat(file.fileno()).st_size < _HEADER.size + length:
        raise _truncated(path)
    if _sha256(file) != digest:
        raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
    file.seek(_HEADER.size)


def _sha256(file: BinaryIO) -> bytes:
    """Of the rest of `file`."""
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


def _stored_metrics(folder: Path) -> Iterator[tuple[int, float | None]]:
    """The env steps and metric of each intact file, without reading its arrays."""
    for steps, path in _files(folder).items():
        with suppress(CheckpointError), _verified(path) as file:
            (length,) = struct.unpack("<Q", _decompress(file, 8))
            file.seek(_HEADER.size)
            yield steps, _decode_meta(_decompress(file, 8 + length))["metric"]


def _files(folder: Path) -> dict[int, Path]:
    """The checkpoints in `folder` by env steps, whether intact or not."""
    names = folder.iterdir() if folder.is_dir() else ()
    return {int(match[1]): path for path in names if (match := _NAME.fullmatch(path.name))}


def _missing(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} does not exist: give a run folder or a checkpoint file")


def _truncated(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is truncated: its end is missing")
