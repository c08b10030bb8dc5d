"""Bad inputs by the thousand: valid files with one thing done to them, the same for the same seed."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.workflows.corpus.inputs import encoded

Random = np.random.Generator
EDGES = (0, 1, 0x7F, 0x80, 0xFF)


@dataclass(frozen=True)
class Mutant:
    """Bytes that were valid before `what` was done to them."""

    suffix: str
    what: str
    data: bytes


def flip(data: bytes, random: Random) -> bytes:
    """Up to eight bits turned over."""
    mutated = bytearray(data)
    for place in random.integers(0, len(data), random.integers(1, 9)):
        mutated[place] ^= 1 << int(random.integers(8))
    return bytes(mutated)


def flip_head(data: bytes, random: Random) -> bytes:
    """A bit turned over among the first bytes, where headers are."""
    mutated = bytearray(data)
    mutated[int(random.integers(0, min(len(data), 64)))] ^= 1 << int(random.integers(8))
    return bytes(mutated)


def cut(data: bytes, random: Random) -> bytes:
    """The end is missing."""
    return data[: int(random.integers(0, len(data)))]


def behead(data: bytes, random: Random) -> bytes:
    """The beginning is missing."""
    return data[int(random.integers(1, len(data))) :]


def blank(data: bytes, random: Random) -> bytes:
    """A run of zeros, as a hole in a file reads."""
    start, stop = sorted(int(v) for v in random.integers(0, len(data) + 1, 2))
    return data[:start] + bytes(stop - start) + data[stop:]


def edge(data: bytes, random: Random) -> bytes:
    """Four bytes of one extreme value, where perhaps a length stood."""
    at, value = int(random.integers(0, len(data))), EDGES[int(random.integers(len(EDGES)))]
    return data[:at] + bytes([value]) * 4 + data[at + 4 :]


def insert(data: bytes, random: Random) -> bytes:
    """Random bytes in the middle."""
    at = int(random.integers(0, len(data)))
    return data[:at] + random.bytes(int(random.integers(1, 600))) + data[at:]


def drop(data: bytes, random: Random) -> bytes:
    """A run of bytes is missing."""
    start, stop = sorted(int(v) for v in random.integers(0, len(data) + 1, 2))
    return data[:start] + data[stop:]


def repeat(data: bytes, random: Random) -> bytes:
    """A run of bytes comes twice."""
    start, stop = sorted(int(v) for v in random.integers(0, len(data) + 1, 2))
    return data[:stop] + data[start:]


def noise(data: bytes, random: Random) -> bytes:
    """Nothing of it is left but its first bytes."""
    return data[: int(random.integers(0, 16))] + random.bytes(len(data))


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip,
    flip_head,
    cut,
    behead,
    blank,
    edge,
    insert,
    drop,
    repeat,
    noise,
)


def mutants(files: Sequence[tuple[str, bytes]], count: int, seed: int) -> Iterator[Mutant]:
    """`count` mutants of `files` (suffix, content), all files and all mutations in turn."""
    for number in range(count):
        random = np.random.default_rng([seed, number])
        suffix, data = files[number % len(files)]
        how = BYTES[number // len(files) % len(BYTES)]
        yield Mutant(suffix, f"{how.__name__} {number}", how(data, random))


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**30,
    1.5,
    "",
    "\ud800",
    "\x00",
    "../../etc/passwd",
    "file:///etc/passwd",
    "a" * 100_000,
    [],
    [[]],
    {},
    {"": {}},
    [None],
    float("nan"),
)
"""What no column is meant to hold."""


def tree_mutants(trees: Sequence[tuple[str, Any]], count: int, seed: int) -> Iterator[Mutant]:
    """JSON that parses, with something strange in one place of it; `trees` are (suffix, value)."""
    for number in range(count):
        random = np.random.default_rng([seed, number])
        suffix, tree = trees[number % len(trees)]
        strange = STRANGE[number // len(trees) % len(STRANGE)]
        mutated = _replaced(json.loads(json.dumps(tree)), strange, random)
        yield Mutant(suffix, f"strange {number}", json.dumps(mutated).encode())


def _replaced(tree: Any, strange: Any, random: Random) -> Any:
    if not isinstance(tree, dict | list) or not tree or random.random() < 0.1:
        return strange
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = keys[int(random.integers(len(keys)))]
    tree[key] = _replaced(tree[key], strange, random)
    return tree


def pictures() -> list[tuple[str, bytes]]:
    """A small picture in every format and mode that people have."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels, "RGBA")
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    return [
        ("jpg", encoded(rgb, "JPEG")),
        ("jpg", encoded(rgb, "JPEG", progressive=True)),
        ("jpg", encoded(rgba.convert("CMYK"), "JPEG")),
        ("png", encoded(rgba, "PNG")),
        ("png", encoded(rgb.quantize(16), "PNG")),
        ("png", encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG")),
        ("webp", encoded(rgb, "WEBP")),
        ("webp", encoded(rgba, "WEBP", lossless=True)),
        ("webp", encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)])),
        ("gif", encoded(rgb.quantize(16), "GIF", save_all=True, append_images=[grey.quantize(8)])),
        ("bmp", encoded(rgb, "BMP")),
        ("tiff", encoded(rgb, "TIFF", compression="tiff_lzw")),
        ("ppm", encoded(rgb, "PPM")),
    ]
