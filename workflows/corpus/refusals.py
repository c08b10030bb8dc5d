"""Refusals of encode: images that passed the probe of ingest and cannot be encoded, with what is said of them.

They lie in `quarantine/encode`, one part for each chunk that has some, written before what is stored of its other
images. A document that names such an image is left out of the corpus and counted. They are remembered: to try again,
remove the parts. They hold for one way of encoding (`CorpusConfig.encode_digest`) alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workflows.corpus.config import CorpusConfig
from workflows.corpus.digests import SHA256, Digests, find, of_column, to_hex
from workflows.corpus.ingested import QUARANTINE
from workflows.corpus.parts import READERS_AT_ONCE, facts_of, list_parts, read_part, write_part
from workflows.storage import exists, join

REASONS = (
    "image unreadable",
    "image too large",
    "image format",
    "image mode",
    "image size",
    "image changed",
    "latents not finite",
    "features not finite",
)
"""Why an image is refused here; "image size": not the one in its header; "image changed": no longer in the source."""
REFUSED = pa.schema([*QUARANTINE, ("sha256", pa.string())])
"""As the quarantine of ingest, and the image."""


@dataclass(frozen=True, slots=True)
class RefusedImage:
    """An image of a chunk that is not encoded: its place there, why, its name in the source and its first bytes."""

    place: int
    reason: str
    key: str = ""
    head: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Refusals:
    """All refused images of one way of encoding, sorted, each with a code (place in `REASONS`)."""

    images: Digests = field(default_factory=lambda: np.empty(0, SHA256))
    codes: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    rounds: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """In which round of encoding each was found."""
    part: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Number of the part of each."""
    parts: Sequence[str] = ()
    """URLs of the parts."""

    @classmethod
    def load(cls, config: CorpusConfig) -> "Refusals":
        """What lies under the root."""
        urls = list(list_parts(config.root, "quarantine", "encode").values())
        with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
            tables = list(pool.map(lambda url: read_part(url, ["sha256", "reason"]), urls))
        own = config.encode_digest()
        chosen = [i for i, table in enumerate(tables) if facts_of(table)["encode"] == own]
        if not chosen:
            return cls()
        held, sizes = [tables[i] for i in chosen], [tables[i].num_rows for i in chosen]
        images, first = np.unique(np.concatenate([of_column(t["sha256"]) for t in held]), return_index=True)
        reasons = [REASONS.index(reason) for table in held for reason in table["reason"].to_pylist()]
        rounds = np.repeat([facts_of(table)["round"] for table in held], sizes)
        numbers = np.repeat(np.arange(len(chosen)), sizes)
        codes = np.array(reasons, np.uint8)[first]
        return cls(
            images,
            codes,
            rounds[first].astype(np.int32),
            numbers[first].astype(np.int32),
            [urls[i] for i in chosen],
        )

    @property
    def last_round(self) -> int:
        """The last round in which something was refused, -1 where nothing was."""
        return int(self.rounds.max(initial=-1))

    def before(self, number: int) -> "Refusals":
        """Those that were found in earlier rounds than this."""
        kept = self.rounds < number
        return Refusals(self.images[kept], self.codes[kept], self.rounds[kept], self.part[kept], self.parts)

    def rows(self, images: pa.ChunkedArray) -> NDArray[np.int16]:
        """For each row of a column with lists of images: the code of the first that is refused, -1 where none is."""
        found = np.full(len(images), -1, np.int16)
        if not len(self.images):
            return found
        lengths = np.fromiter((len(row) for row in images.to_pylist()), np.int64, len(images))
        places = find(of_column(images.combine_chunks().flatten()), self.images)
        owner = np.repeat(np.arange(len(images)), lengths)
        bad = np.flatnonzero(places >= 0)[::-1]
        found[owner[bad]] = self.codes[places[bad]]
        return found

    def parts_of(self, images: Digests) -> list[str]:
        """URLs of the parts that name any of `images`."""
        places = find(images, self.images)
        return [self.parts[number] for number in np.unique(self.part[places[places >= 0]])]


def refused_images(config: CorpusConfig) -> Mapping[str, str]:
    """SHA-256 of each image that encode refused -> why."""
    found = Refusals.load(config)
    return dict(zip(to_hex(found.images), (REASONS[code] for code in found.codes), strict=True))


def write_refusals(
    root: str,
    facts: Mapping[str, Any],
    where: Mapping[str, str],
    images: Sequence[str],
    refused: Sequence[RefusedImage],
) -> None:
    """Remember what is refused of a chunk's `images`; `where` names source and file, `facts` encode and round.

    What was written of the same chunk before stays: it may know of a model that has encoded all of it since.
    """
    what = f"{facts['encode']}:{','.join(images)}"
    url = join(root, "quarantine", "encode", f"part-{hashlib.sha256(what.encode()).hexdigest()[:16]}.parquet")
    if exists(url):
        return
    rows = [
        {**where, "key": r.key, "reason": r.reason, "head": r.head, "sha256": images[r.place]}
        for r in refused
    ]
    write_part(url, pa.Table.from_pylist(rows, REFUSED), facts)
