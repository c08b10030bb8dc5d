"""Deny lists: files naming images and documents that a corpus shall not hold; nothing is ingested for them again."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workflows.storage import read_bytes


def denied(urls: Sequence[str]) -> pa.Array:
    """The entries of all lists, one a line: the SHA-256 of an image file, or the id of a document; `#` begins a note.

    Raises:
        OneFlowError: a list that is not there.
    """
    lines = {line.partition(b"#")[0].strip() for url in urls for line in read_bytes(url).splitlines()}
    return pa.array(sorted(line.decode("utf-8", "replace") for line in lines if line), pa.string())


def denial_digest(urls: Sequence[str]) -> str | None:
    """Digest of what the lists hold now; None for no list."""
    if not urls:
        return None
    return hashlib.sha256("\n".join(denied(urls).to_pylist()).encode()).hexdigest()


def denied_rows(documents: pa.Table, entries: pa.Array) -> NDArray[np.bool_]:
    """Which rows (`doc_id`, `images`) are named in `entries`, or hold an image that is."""
    found: NDArray[np.bool_] = np.array(pc.is_in(documents["doc_id"], value_set=entries), np.bool_)
    images = documents["images"].combine_chunks()
    named = np.array(pc.is_in(pc.list_flatten(images), value_set=entries), np.bool_)
    found[np.array(pc.list_parent_indices(images), np.int64)[named]] = True
    return found
