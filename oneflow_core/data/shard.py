"""Shards: plain webdataset tars of documents with their latents, written to fixed bytes and read at random.

A sample is `<key>.json` (the document), `<key>.<i>.latent.npy` (float16 [C, h, w]) and, where features are
stored, `<key>.<i>.features.npy` (float16 [P, dim]) for its image i. Any webdataset reader opens such a tar. Beside
it lies an offset index, with which one sample is one contiguous read; it can be rebuilt from the tar alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneflow_core.data.index import Member, SampleEntry, ShardError, ShardIndex, member_digest
from oneflow_core.document import Document, DocumentError

KEY_LENGTH = 80
"""Longest key in characters: member names stay within the 100 bytes of a plain ustar header."""
HALF = np.dtype(np.float16)
NPY_PREFIX = 10
"""Bytes of a `.npy` file of version 1 before its header, whose length is in the last two."""
PLAIN = re.compile(rf"[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}")
"""Document ids that are their own keys."""

Array = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Sample:
    """A document and, in the order of its images, their latents (f16 [C,h,w]) and features (f16 [P,dim]).

    `features` has one array an image, or none at all where the corpus does not store them.
    """

    document: Document
    latents: tuple[Array, ...] = ()
    features: tuple[Array, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardBytes:
    """A shard as it is stored: the tar and the index over it."""

    data: bytes
    index: ShardIndex

    @property
    def sha256(self) -> str:
        """SHA-256 of the tar, in hex."""
        return hashlib.sha256(self.data).hexdigest()


def key_of(doc_id: str) -> str:
    """The sample key of a document: its id where that is a plain word, else cleaned, with a digest added."""
    if PLAIN.fullmatch(doc_id):
        return doc_id
    clean = re.sub(r"[^A-Za-z0-9_-]", "_", doc_id)[:KEY_LENGTH]
    return f"{clean[: KEY_LENGTH - 11]}-{hashlib.sha256(doc_id.encode()).hexdigest()[:10]}"


def write_shard(samples: Iterable[Sample]) -> ShardBytes:
    """The samples as one tar, in their order. Equal samples give equal bytes: no clock or owner gets in.

    Raises:
        ShardError: a key occurs twice, or a sample's arrays do not fit its images in count, dtype or rank.
    """
    stream = io.BytesIO()
    entries: dict[str, SampleEntry] = {}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            key = key_of(sample.document.doc_id)
            if key in entries:
                raise ShardError(
                    f"sample {key}: the document is there twice; doc_id must be unique in a shard"
                )
            members = [_add(tar, stream, key, name, data) for name, data in _members(sample)]
            entries[key] = SampleEntry(key, tuple(members))
    data = stream.getvalue()
    return ShardBytes(data, ShardIndex(tuple(entries.values()), len(data)))


def read_sample(entry: SampleEntry, span: memoryview) -> Sample:
    """The sample of `entry` out of `span`, the tar's bytes from `entry.start` to `entry.stop`, digests checked.

    Arrays are views of `span`, so they are as writable as it is.

    Raises:
        ShardError: a member's bytes do not have their digest, or are not what the format says.
    """
    start, document = entry.start, None
    arrays: dict[str, list[Array]] = {"latent": [], "features": []}
    for member, kind in zip(entry.members, _kinds(tuple([m.name for m in entry.members])), strict=True):
        at = member.offset - start
        data = span[at : at + member.size]
        if member_digest(data) != member.digest:
            raise ShardError(f"{entry.key}.{member.name}: bytes differ from their digest")
        if kind == "json":
            document = _document(entry.key, data)
        elif kind in arrays:
            arrays[kind].append(_array(f"{entry.key}.{member.name}", data))
        else:
            raise ShardError(f"{entry.key}.{member.name}: no such member in this format, or out of order")
    if document is None:
        raise ShardError(f"{entry.key}: has no .json member")
    sample = Sample(document, tuple(arrays["latent"]), tuple(arrays["features"]))
    _check(sample)
    return sample


@lru_cache(maxsize=4096)
def _kinds(names: tuple[str, ...]) -> tuple[str, ...]:
    """What each member of a sample is: json, latent, features; empty where the format has no such member there."""
    found, kinds = Counter[str](), []
    for name in names:
        position, _, kind = name.removesuffix(".npy").partition(".")
        fits = name == "json" or (name.endswith(".npy") and position == str(found[kind]))
        kinds.append("" if not fits else kind or "json")
        found[kind] += 1
    return tuple(kinds)


def array_bytes(array: Array) -> bytes:
    """`array` as `.npy` bytes, the same on every machine."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def document_bytes(document: Document) -> bytes:
    """The document as the `.json` member holds it."""
    return json.dumps(document.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _members(sample: Sample) -> list[tuple[str, bytes]]:
    _check(sample)
    members = [("json", document_bytes(sample.document))]
    for i, latent in enumerate(sample.latents):
        members.append((f"{i}.latent.npy", array_bytes(latent)))
        if sample.features:
            members.append((f"{i}.features.npy", array_bytes(sample.features[i])))
    return members


def _check(sample: Sample) -> None:
    images, doc_id = len(sample.document.images), sample.document.doc_id
    if len(sample.latents) != images or len(sample.features) not in (0, images):
        found = f"{len(sample.latents)} latents and {len(sample.features)} features"
        raise ShardError(f"sample {doc_id}: {images} images, but {found}")
    _check_arrays(doc_id, "latent", sample.latents, 3)
    _check_arrays(doc_id, "features", sample.features, 2)


def _check_arrays(doc_id: str, kind: str, arrays: Sequence[Array], rank: int) -> None:
    for i, array in enumerate(arrays):
        if array.dtype != HALF or array.ndim != rank or 0 in array.shape:
            found = f"{array.dtype} {list(array.shape)}"
            raise ShardError(f"sample {doc_id}: {kind} {i} is {found}, not float16 of rank {rank}")


def _add(tar: tarfile.TarFile, stream: io.BytesIO, key: str, name: str, data: bytes) -> Member:
    info = tarfile.TarInfo(f"{key}.{name}")
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    offset = stream.tell() + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return Member(name, offset, len(data), member_digest(data))


def _document(key: str, data: memoryview) -> Document:
    try:
        document = Document.from_json(json.loads(str(data, "utf-8")))
    except (ValueError, AttributeError) as error:
        cause = error if isinstance(error, DocumentError) else f"not a JSON object: {error}"
        raise ShardError(f"{key}.json: {cause}") from None
    if key_of(document.doc_id) != key:
        raise ShardError(f"{key}.json: holds document {document.doc_id!r}, whose key is another")
    return document


def _array(name: str, data: memoryview) -> Array:
    try:
        start = NPY_PREFIX + data[NPY_PREFIX - 2] + 256 * data[NPY_PREFIX - 1]
        shape, dtype, order, size = _header(bytes(data[:start]))
        if start + size != len(data):
            raise ValueError(f"{len(data) - start} bytes of values where {size} are meant")
        return np.ndarray(shape, dtype, data, start, order=order)
    except (ValueError, IndexError) as error:
        raise ShardError(f"{name}: no plain .npy array: {error}") from None


@lru_cache(maxsize=1024)
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any], Literal["C", "F"], int]:
    """What the head of a `.npy` file of version 1 says: shape, dtype, order, and bytes of the values.

    Raises:
        ValueError: it is none, or says that objects are pickled there.
    """
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("it is of another version than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    return shape, dtype, "F" if fortran else "C", math.prod(shape) * dtype.itemsize
