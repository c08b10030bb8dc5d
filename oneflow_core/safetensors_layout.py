"""Where tensors lie in a safetensors file, so that a file can be written and read piece by piece.

The library of that name reads and writes whole files; what is here streams. The format: 8 bytes with the header's
length (little endian), the header (JSON: dtype, shape and place of every tensor), the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

ALIGNMENT = 8
LONGEST_HEADER = 100_000_000
"""Bytes; the library's own limit."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class LayoutError(ValueError):
    """Bytes that are no safetensors file, or a dtype that the format does not know."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a tensor is, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of a file; `begin` counts bytes from the file's first."""

    kind: Kind
    begin: int

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.begin + self.kind.bytes


def lay_out(
    kinds: Mapping[str, Kind], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Place]]:
    """The first bytes of a file, and the places of its tensors, in order and without gaps up to its end.

    The widest dtypes come first, so that every tensor is aligned to its own; within a dtype names are sorted.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins: dict[str, int] = {}
    at = 0
    for name in sorted(kinds, key=lambda name: (-kinds[name].dtype.itemsize, name)):
        kind = kinds[name]
        if kind.dtype not in NAMES:
            raise LayoutError(f"{name}: safetensors has no {kind.dtype}; cast it")
        places = [at, at + kind.bytes]
        header[name] = {"dtype": NAMES[kind.dtype], "shape": list(kind.shape), "data_offsets": places}
        begins[name], at = at, at + kind.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: Place(kinds[name], len(head) + begin) for name, begin in begins.items()}


def read_places(read: Callable[[int, int], bytes]) -> dict[str, Place]:
    """The tensors of a file; `read(a, b)` gives its bytes from a to before b.

    Raises:
        LayoutError: it is no safetensors file.
    """
    try:
        (length,) = struct.unpack("<Q", read(0, 8))
        if length > LONGEST_HEADER:
            raise LayoutError(f"a header of {length} bytes")
        header = json.loads(read(8, 8 + length))
        return {name: _place(told, 8 + length) for name, told in header.items() if name != "__metadata__"}
    except (struct.error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LayoutError(f"no safetensors file: {error}") from None


def _place(told: Mapping[str, object], base: int) -> Place:
    shape, offsets = told["shape"], told["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise LayoutError("shape or place are no lists")
    kind = Kind(DTYPES[str(told["dtype"])], tuple(int(n) for n in shape))
    begin, end = (int(n) for n in offsets)
    if begin < 0 or end - begin != kind.bytes:
        raise LayoutError(f"{end - begin} bytes for {kind.shape} of {kind.dtype}")
    return Place(kind, base + begin)
