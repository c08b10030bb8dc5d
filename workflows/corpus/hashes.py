"""Perceptual hashes of a unit's images, in a part of their own, made from what was ingested when they are wanted."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workflows.corpus.config import CorpusConfig
from workflows.corpus.documents import sha256_of
from workflows.corpus.parts import PartWriter, list_parts, read_part
from workflows.corpus.pictures import PictureError, small
from workflows.corpus.sources import Draft, Picture
from workflows.corpus.units import Unit, opened
from workflows.errors import OneFlowError
from workflows.storage import exists, join

HASHES = pa.schema([("sha256", pa.string()), ("hash", pa.uint64())])
"""An image that does not decode has no hash, and is no duplicate."""


def hash_of(data: bytes) -> int | None:
    """The perceptual hash of an image file, upright and on white; None where it does not decode."""
    import imagehash

    try:
        bits = imagehash.phash(small(data)).hash
    except PictureError:
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hashes_of(documents: str) -> str:
    """URL of the part of hashes that goes with the part `documents`."""
    root, _, source, name = documents.rsplit("/", 3)
    return join(root, "hashes", source, name)


def present(config: CorpusConfig) -> set[str]:
    """URLs of the parts that are there."""
    sources = (source.name for source in config.sources)
    return {url for source in sources for url in list_parts(config.root, "hashes", source).values()}


def hash_unit(config: CorpusConfig, unit: Unit, documents: str) -> int:
    """Write the part of hashes of the images that stand alone in a document of the part `documents`; how many."""
    wanted = set(_alone(read_part(documents, ["images"])["images"]).to_pylist()) - {None}
    with PartWriter(HASHES) as part, opened(config, unit) as drafts:
        for draft in drafts:
            for sha256, picture in _pictures(draft) if wanted else ():
                if sha256 in wanted:
                    wanted.discard(sha256)
                    part.add({"sha256": sha256, "hash": hash_of(picture.data or b"")}, 128)
        part.put(hashes_of(documents), {"unit": unit.main})
        return part.count


def read_hashes(documents: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The hash for each document of the part `documents`, and which have one.

    Raises:
        OneFlowError: its images were not hashed.
    """
    url = hashes_of(documents)
    if not exists(url):
        raise OneFlowError(
            documents, "its images were not hashed", "run oneflow corpus build with --stage ingest"
        )
    table = read_part(url)
    images = _alone(read_part(documents, ["images"])["images"])
    rows = pc.index_in(images, value_set=table["sha256"].combine_chunks())
    found = table["hash"].combine_chunks().take(rows.combine_chunks())
    return found.fill_null(0).to_numpy(), found.is_valid().to_numpy(zero_copy_only=False)


def _alone(images: pa.ChunkedArray) -> pa.ChunkedArray:
    """The image of each document that has one only; null for the others."""
    one = pc.equal(pc.list_value_length(images), 1)
    first = pc.list_element(pc.if_else(one, images, pa.scalar([""], images.type)), 0)
    return pc.if_else(one, first, pa.scalar(None, pa.string()))


def _pictures(draft: object) -> Iterator[tuple[str, Picture]]:
    for content, _ in draft.segments if isinstance(draft, Draft) else ():
        if isinstance(content, Picture) and content.data is not None:
            yield sha256_of(content), content
