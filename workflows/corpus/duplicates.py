"""Duplicates: which of many documents, in one order, say or show what an earlier one does.

Exact ones are told by digests. Near ones by perceptual hashes of 64 bits that differ in few: if at most d bits of d + k
bands differ, k bands at least are equal, so documents are only compared where these agree, not each with each.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from math import comb, log2

import numpy as np
from numpy.typing import NDArray

from oneflow_core.document import Document, ImageSegment

Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]
DIGEST = np.dtype([("high", "u8"), ("low", "u8")])
"""A digest of 16 bytes as numbers that numpy can order."""
BITS = 64


def content_digest(document: Document) -> bytes:
    """16 bytes: equal for documents of the same segments, whatever their ids, sources, licences and provenance."""
    parts = [
        [s.role, s.sha256] if isinstance(s, ImageSegment) else [s.role, s.text, ""] for s in document.segments
    ]
    return _digest(parts, 16)


def picture_digest(document: Document) -> bytes:
    """16 bytes: equal for documents that show the same images in the same order, whatever they say of them.

    Instructions have to say the same too: another question about a picture is another document. Documents without an
    image are told apart by their content.
    """
    if not document.images:
        return content_digest(document)
    return _digest([[image.sha256 for image in document.images], (text_digest(document) or b"").hex()], 16)


def text_digest(document: Document) -> bytes | None:
    """8 bytes of an instruction: equal for those that say the same. None for what is no instruction."""
    if document.kind != "instruction":
        return None
    return _digest([[text.role, text.text] for text in document.texts], 8)


def repeated(digests: NDArray[np.void]) -> Mask:
    """Which of `digests` stood earlier in the array."""
    order = np.lexsort((digests["low"], digests["high"]))
    ordered = digests[order]
    found = np.zeros(len(digests), np.bool_)
    # The sort is stable: of equals the first in the array is the first here.
    found[order[1:]] = ordered[1:] == ordered[:-1]
    return found


def nearly_repeated(hashes: Hashes, groups: Hashes, distance: int) -> Mask:
    """Which of `hashes` differ in at most `distance` bits from an earlier one of the same group that is not left out.

    So every one that is left out has one beside it that stays. What is found depends on the order of the array alone.
    """
    both = np.empty(len(hashes), DIGEST)
    both["high"], both["low"] = groups, hashes
    distinct, first, which = np.unique(both, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    stays = bytearray(b"\1" * len(distinct))
    for earlier, later in _pairs(distinct["low"][order], distinct["high"][order], distance):
        if stays[earlier]:
            stays[later] = 0
    kept = np.frombuffer(stays, np.bool_)[place[which.ravel()]]
    is_first = np.zeros(len(hashes), np.bool_)
    is_first[first] = True
    found: Mask = ~(kept & is_first)
    return found


def _digest(value: object, size: int) -> bytes:
    raw = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return hashlib.blake2b(raw, digest_size=size).digest()


def _pairs(hashes: Hashes, groups: Hashes, distance: int) -> Iterator[tuple[int, int]]:
    """(i, j), i < j, of the same group within `distance`; ordered by j, so that i is decided before j is."""
    size = len(hashes)
    found = [np.zeros(0, np.uint64)]
    for mask in _masks(size, distance) if size else ():
        for i, j in _equal(_mixed(hashes & mask, groups)):
            near = (np.bitwise_count(hashes[i] ^ hashes[j]) <= distance) & (groups[i] == groups[j])
            low, high = np.minimum(i, j)[near], np.maximum(i, j)[near]
            found.append(high.astype(np.uint64) * np.uint64(size) + low.astype(np.uint64))
    for pair in np.unique(np.concatenate(found)):
        yield int(pair) % size, int(pair) // size


def _masks(size: int, distance: int) -> Iterable[np.uint64]:
    """Bits that are compared for equality, set by set: any two hashes within `distance` agree in one set at least.

    More sets of more bits cost more sorting and less comparing; what is found is the same.
    """

    def cost(agreeing: int) -> float:
        bands = distance + agreeing
        return comb(bands, agreeing) * (size * log2(size + 1) + size**2 / 2 ** (BITS * agreeing / bands))

    agreeing = min((1, 2, 3), key=cost)
    edges = np.linspace(0, BITS, distance + agreeing + 1).astype(int)
    bands = [(1 << int(b)) - (1 << int(a)) for a, b in zip(edges, edges[1:], strict=False)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, agreeing)]


def _mixed(keys: Hashes, groups: Hashes) -> Hashes:
    """One number of both; that others may fall on it too costs a comparison."""
    mixed: Hashes = keys ^ (groups * np.uint64(0x9E3779B97F4A7C15))
    return mixed


def _equal(keys: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of places with equal keys, in arrays."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.arange(len(keys) - 1)
    step = 1
    while len(starts := starts[starts + step < len(keys)]):
        starts = starts[ordered[starts] == ordered[starts + step]]
        yield order[starts], order[starts + step]
        step += 1
