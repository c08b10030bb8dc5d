"""SHA-256 of many images at once: arrays of 32 bytes each, where strings and sets would take ten times the room."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Digests = NDArray[np.bytes_]
"""Digests as dtype S32, compared as bytes; numpy drops zeros at the end of single items, so go through `to_hex`."""
SHA256 = np.dtype("S32")


def of_hex(texts: Iterable[str], dtype: np.dtype[Any] = SHA256) -> Digests:
    """Digests from their hexadecimal form."""
    return np.frombuffer(bytes.fromhex("".join(texts)), dtype)


def of_column(column: pa.ChunkedArray, dtype: np.dtype[Any] = SHA256) -> Digests:
    """The same from a column of such texts without nulls, 64 Ki of them at a time."""
    pieces = [of_hex(piece.to_pylist(), dtype) for piece in _slices(column, 1 << 16)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def to_hex(digests: Digests) -> list[str]:
    """The hexadecimal form of each."""
    text, size = np.ascontiguousarray(digests).tobytes().hex(), 2 * digests.dtype.itemsize
    return [text[i : i + size] for i in range(0, len(text), size)]


def distinct(digests: Digests) -> Digests:
    """Each once, in the order in which they first come."""
    _, first = np.unique(digests, return_index=True)
    return digests[np.sort(first)]


def find(digests: Digests, held: Digests) -> NDArray[np.int64]:
    """Place of each of `digests` in the sorted `held`, -1 where it is not there."""
    if not len(held):
        return np.full(len(digests), -1)
    places = np.minimum(np.searchsorted(held, digests), len(held) - 1)
    return np.where(held[places] == digests, places, -1)


def _slices(column: pa.ChunkedArray, rows: int) -> Iterable[pa.Array]:
    return (column.slice(start, rows) for start in range(0, len(column), rows))
