"""A container for environment states: JSON and raw data with a checksum, without pickle.

Layout: magic (8 bytes), CRC-32 of everything after it (uint32), length of the header (uint32),
header (JSON: kind, meta, lengths of the blobs), blobs. Integers are little-endian.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.errors import CheckpointError
from htsrl_cli.machine import package_versions

_MAGIC = b"HTSENV01"
_PREFIX = struct.Struct("<8sII")


def pack_state(kind: str, meta: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """Packs JSON-serializable `meta` and raw `blobs`; `unpack_state` needs the same `kind`."""
    header = json.dumps({"kind": kind, "meta": meta, "blobs": [len(blob) for blob in blobs]})
    encoded = header.encode()
    body = b"".join([encoded, *blobs])
    crc = zlib.crc32(struct.pack("<I", len(encoded)) + body)
    return _PREFIX.pack(_MAGIC, crc, len(encoded)) + body


def unpack_state(kind: str, state: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Returns the `meta` and the `blobs` that were given to `pack_state`.

    Raises:
        CheckpointError: the bytes are damaged, or were packed for another `kind`.
    """
    header, body = _read(state)
    meta, lengths = header.get("meta"), header.get("blobs")
    if (
        not isinstance(meta, dict)
        or not isinstance(lengths, list)
        or any(type(n) is not int or n < 0 for n in lengths)
    ):
        raise CheckpointError("the environment state is damaged: its header is not complete")
    if header.get("kind") != kind:
        raise CheckpointError(
            f"the saved environment is of kind {header.get('kind')!r}, but the run's environment "
            f"is of kind {kind!r}"
        )
    blobs: list[bytes] = []
    for length in lengths:
        blobs.append(body[:length])
        body = body[length:]
    return meta, blobs


def check_fit(kind: str, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Checks that `stored` describes the same environment as `expected`.

    Raises:
        CheckpointError: a value of `expected` is missing from `stored`, or differs.
    """
    for name, value in expected.items():
        if stored.get(name) != value:
            raise CheckpointError(
                f"the {kind} state is for {name}={stored.get(name)}, not for {name}={value}"
            )


def state_packages(config: EnvConfig) -> dict[str, str]:
    """Returns the package that defines the format of saved states, as `{name: version}`.

    The result is empty if no package defines this format, or if the package is not installed.
    """
    name = config.state_package
    return {} if name is None else package_versions(name)


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """Returns the JSON-serializable state of a random generator, for `restore_generator`."""
    return dict(rng.bit_generator.state)


def restore_generator(rng: np.random.Generator, state: dict[str, Any]) -> None:
    """Sets the random generator `rng` to a state that `generator_state` returned.

    Raises:
        CheckpointError: the state does not fit the generator.
    """
    try:
        rng.bit_generator.state = state
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the environment state is damaged: its random generator cannot be restored"
        ) from error


def _read(state: bytes) -> tuple[dict[str, Any], bytes]:
    if len(state) < _PREFIX.size:
        raise CheckpointError(f"the environment state is damaged: only {len(state)} bytes")
    magic, crc, length = _PREFIX.unpack_from(state)
    if magic != _MAGIC or crc != zlib.crc32(state[_PREFIX.size - 4 :]):
        raise CheckpointError("the environment state is damaged: its checksum does not match")
    body = state[_PREFIX.size :]
    try:
        header = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise CheckpointError("the environment state is damaged: its header is no JSON") from error
    return header if isinstance(header, dict) else {}, body[length:]
