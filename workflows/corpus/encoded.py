"""What is stored of images under a corpus root: latents of a codec, features of an encoder, once for each image.

A part holds rows (sha256, digest, data): the image's id, BLAKE2b-128 of `data`, and the array as float16 bytes, whose
shape is in the footer. Parts lie under the id of the model and the size that images were resized to.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oneflow_core.data.index import digest_of
from workflows.corpus.parts import READERS_AT_ONCE, facts_of, list_parts, read_facts, read_part, write_part
from workflows.storage import join

ENCODED = pa.schema([("sha256", pa.string()), ("digest", pa.string()), ("data", pa.binary())])


@dataclass(frozen=True, slots=True)
class Store:
    """The arrays of one kind ("latents", "features") of one model, and where each image's is.

    `model` is the id of the codec or encoder; None stands for no model, and nothing stored.
    """

    root: str
    kind: str
    model: str | None
    image_size: int
    parts: Sequence[str] = ()
    """URLs of the parts."""
    places: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """SHA-256 of an image -> number of its part, digest of its array."""

    @classmethod
    def load(cls, root: str, kind: str, model: str | None, image_size: int) -> "Store":
        """Read which images are stored; of each part the ids and digests alone."""
        empty = cls(root, kind, model, image_size)
        if model is None:
            return empty
        parts = list(list_parts(empty.folder).values())
        with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
            tables = list(pool.map(lambda url: read_part(url, ["sha256", "digest"]), parts))
        places: dict[str, tuple[int, str]] = {}
        for number, table in enumerate(tables):
            for sha256, digest in zip(*(table[c].to_pylist() for c in ("sha256", "digest")), strict=True):
                places.setdefault(sha256, (number, digest))
        return cls(root, kind, model, image_size, parts, places)

    @property
    def folder(self) -> str:
        """Where the parts lie."""
        return join(self.root, self.kind, str(self.model), f"{self.image_size}px")

    def shape(self) -> tuple[int, ...] | None:
        """Shape of every array, None where nothing is stored."""
        return tuple(read_facts(self.parts[:1])[0]["shape"]) if self.parts else None

    def parts_of(self, images: Sequence[str]) -> list[str]:
        """URLs of the parts that hold the arrays of `images`, in a fixed order."""
        return [self.parts[number] for number in sorted({self.places[sha256][0] for sha256 in images})]


def write_encoded(folder: str, name: str, images: Sequence[str], arrays: NDArray[np.float16]) -> None:
    """Store row i of `arrays` as that of image i, in one part."""
    data = [array.astype("<f2").tobytes() for array in arrays]
    columns = [list(images), [digest_of(item) for item in data], data]
    table = pa.table(dict(zip(ENCODED.names, columns, strict=True)), schema=ENCODED)
    write_part(join(folder, f"{name}.parquet"), table, {"shape": list(arrays.shape[1:])})


def read_encoded(urls: Sequence[str], images: set[str]) -> dict[str, NDArray[np.float16]]:
    """The arrays of those of `images` that are in the parts `urls`; the first part that has one gives it."""
    found: dict[str, NDArray[np.float16]] = {}
    for url in urls:
        table = read_part(url)
        shape = facts_of(table)["shape"]
        data = table["data"]
        for row, sha256 in enumerate(table["sha256"].to_pylist()):
            if sha256 in images and sha256 not in found:
                found[sha256] = np.frombuffer(data[row].as_buffer(), "<f2").reshape(shape)
    return found
