"""What is stored of images under a corpus root: latents of a codec, features of an encoder, once for each image.

A part holds rows (sha256, digest, data): the image's id, BLAKE2b-128 of `data`, and the array as float16 bytes, whose
shape is in the footer; all arrays of a part have one. An image that was refused has a row without data, so that a
part holds what was planned, whatever came of it. Parts lie under the id of the model and the word for the frame.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oneflow_core.data.index import digest_of
from workflows.corpus.digests import SHA256, Digests, find, of_column, of_hex
from workflows.corpus.parts import READERS_AT_ONCE, facts_of, list_parts, read_part, write_part
from workflows.storage import join

ENCODED = pa.schema([("sha256", pa.string()), ("digest", pa.string()), ("data", pa.binary())])
Shape = tuple[int, ...]
BLAKE = np.dtype("S16")
PARTS_HELD = 2
"""Parts whose arrays a reader keeps: documents come in the order in which their images were encoded."""


def _none() -> Digests:
    return np.empty(0, SHA256)


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """The arrays of one kind ("latents", "features") of one model in one frame, and where each image's is.

    `model` is the id of the codec or encoder; None stands for no model, and nothing stored. Some 60 bytes an image.
    """

    root: str
    kind: str
    model: str | None
    frame: str
    parts: Sequence[str] = ()
    """URLs of the parts."""
    shapes: Sequence[Shape | None] = ()
    """Of the arrays of each part; None for one without any."""
    images: Digests = field(default_factory=_none)
    """What is stored, sorted."""
    digests: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, BLAKE))
    """BLAKE2b-128 of the array of each of `images`."""
    part: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Number of the part of each of `images`."""
    refused: Digests = field(default_factory=_none)
    """What has a row but no array, sorted."""

    @classmethod
    def load(cls, root: str, kind: str, model: str | None, frame: str) -> "Store":
        """Read which images are stored; of each part the ids and digests alone."""
        empty = cls(root, kind, model, frame)
        parts = [] if model is None else list(list_parts(empty.folder).values())
        if not parts:
            return empty
        with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
            read = list(pool.map(_rows, parts))
        number = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows[1]) for rows in read])
        images, first = np.unique(np.concatenate([rows[1] for rows in read]), return_index=True)
        digests = np.concatenate([rows[2] for rows in read])[first]
        refused = np.unique(np.concatenate([rows[3] for rows in read]))
        shapes = [rows[0] for rows in read]
        return cls(root, kind, model, frame, parts, shapes, images, digests, number[first], refused)

    @property
    def folder(self) -> str:
        """Where the parts lie."""
        return join(self.root, self.kind, str(self.model), self.frame)

    def has(self, images: Digests) -> NDArray[np.bool_]:
        """Which of `images` are stored."""
        stored: NDArray[np.bool_] = find(images, self.images) >= 0
        return stored

    def parts_of(self, images: Digests) -> list[str]:
        """URLs of the parts that hold the arrays of `images`, all of them stored, in a fixed order."""
        return [self.parts[number] for number in np.unique(self.part[find(images, self.images)])]

    def digests_of(self, images: Digests) -> NDArray[np.bytes_]:
        """BLAKE2b-128 of the array of each of `images`, all of them stored."""
        return self.digests[find(images, self.images)]

    def shapes_of(self, images: Digests) -> dict[Shape, int]:
        """Shape -> how many of `images`, all of them stored, have it."""
        numbers, counts = np.unique(self.part[find(images, self.images)], return_counts=True)
        found: dict[Shape, int] = {}
        for number, count in zip(numbers, counts, strict=True):
            shape = self.shapes[number]
            assert shape is not None, "a part with an array has its shape"
            found[shape] = found.get(shape, 0) + int(count)
        return found


def write_encoded(
    folder: str, name: str, images: Sequence[str], arrays: NDArray[np.float16], refused: Sequence[int] = ()
) -> None:
    """Store row i of `arrays` as that of image i, in one part; those of the places `refused` hold nothing."""
    gone = set(refused)
    data = [None if i in gone else array.astype("<f2").tobytes() for i, array in enumerate(arrays)]
    columns = [list(images), [None if item is None else digest_of(item) for item in data], data]
    table = pa.table(dict(zip(ENCODED.names, columns, strict=True)), schema=ENCODED)
    shape = list(arrays.shape[1:]) if len(gone) < len(images) else None
    write_part(join(folder, f"{name}.parquet"), table, {"shape": shape})


def read_encoded(urls: Sequence[str], images: set[str]) -> dict[str, NDArray[np.float16]]:
    """The arrays of those of `images` that are in the parts `urls`; the first part that has one gives it."""
    found: dict[str, NDArray[np.float16]] = {}
    for url in urls:
        for sha256, array in _arrays(read_part(url), images).items():
            found.setdefault(sha256, array)
    return found


class Arrays:
    """The arrays of some parts, by image, with few of the parts in memory at a time."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._held: dict[int, pa.Table] = {}
        with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
            columns = list(pool.map(lambda url: _rows(url)[1], urls))
        self._images, first = np.unique(np.concatenate([_none(), *columns]), return_index=True)
        self._part = np.repeat(np.arange(len(urls)), [len(column) for column in columns])[first]

    def of(self, images: Sequence[str]) -> dict[str, NDArray[np.float16]]:
        """The arrays of `images`, each of which is in one of the parts; none where there are no parts."""
        if not self._urls:
            return {}
        wanted = set(images)
        numbers = np.unique(self._part[find(of_hex(wanted), self._images)])
        found: dict[str, NDArray[np.float16]] = {}
        for number in numbers.tolist():
            for sha256, array in _arrays(self._part_of(number), wanted).items():
                found.setdefault(sha256, array)
        return found

    def _part_of(self, number: int) -> pa.Table:
        table = self._held.pop(number) if number in self._held else read_part(self._urls[number])
        self._held[number] = table
        while len(self._held) > PARTS_HELD:
            del self._held[next(iter(self._held))]
        return table


def _arrays(table: pa.Table, images: set[str]) -> dict[str, NDArray[np.float16]]:
    shape, data = facts_of(table)["shape"], table["data"]
    return {
        sha256: np.frombuffer(data[row].as_buffer(), "<f2").reshape(shape)
        for row, sha256 in enumerate(table["sha256"].to_pylist())
        if sha256 in images and data[row].is_valid
    }


def _rows(url: str) -> tuple[Shape | None, Digests, NDArray[Any], Digests]:
    """Shape, images and digests of a part, and the images that it refuses."""
    table = read_part(url, ["sha256", "digest"])
    shape = facts_of(table)["shape"]
    held = table.filter(table["digest"].is_valid())
    gone = table.filter(table["digest"].is_null())
    images, digests = of_column(held["sha256"]), of_column(held["digest"], BLAKE)
    return None if shape is None else tuple(shape), images, digests, of_column(gone["sha256"])
