"""Values of saved states: plain Python and NumPy values as JSON and raw data, without pickle."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def encode(value: Any, blobs: list[bytes]) -> Any:
    """Returns `value` as a JSON-serializable value; appends its bytes and arrays to `blobs`.

    Accepts None, bool, int, float, str, bytes, NumPy arrays and scalars, and lists, tuples and
    dictionaries of such values.

    Raises:
        TypeError: `value` contains something else.
    """
    if value is None or (type(value) in (bool, int, float, str)):
        return value
    if isinstance(value, bytes | bytearray):
        blobs.append(bytes(value))
        return {"bytes": len(blobs) - 1}
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(value), allow_pickle=False)
        blobs.append(buffer.getvalue())
        return {"array" if isinstance(value, np.ndarray) else "scalar": len(blobs) - 1}
    if type(value) is list:
        return [encode(entry, blobs) for entry in value]
    if type(value) is tuple:
        return {"tuple": [encode(entry, blobs) for entry in value]}
    if type(value) is dict:
        return {"dict": encode([list(pair) for pair in value.items()], blobs)}
    raise TypeError(
        "a state must consist of None, bool, int, float, str, bytes, NumPy arrays and numbers, and "
        f"lists, tuples and dicts of these, but contains {value!r:.80} of type "
        f"{type(value).__name__}"
    )


def decode(encoded: Any, blobs: list[bytes]) -> Any:
    """Returns the value for which `encode` returned `encoded` and appended `blobs`.

    Raises:
        LookupError, TypeError, ValueError: `encoded` or `blobs` are damaged.
    """
    if isinstance(encoded, list):
        return [decode(entry, blobs) for entry in encoded]
    if not isinstance(encoded, dict):
        return encoded
    ((form, content),) = encoded.items()
    return _DECODERS[form](content, blobs)


def _array(number: int, blobs: list[bytes]) -> Any:
    return np.lib.format.read_array(io.BytesIO(blobs[number]), allow_pickle=False)


_DECODERS: Mapping[str, Callable[[Any, list[bytes]], Any]] = {
    "bytes": lambda number, blobs: blobs[number],
    "array": _array,
    "scalar": lambda number, blobs: _array(number, blobs)[()],
    "tuple": lambda entries, blobs: tuple(decode(entries, blobs)),
    "dict": lambda pairs, blobs: dict(decode(pairs, blobs)),
}
