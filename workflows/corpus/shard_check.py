"""One shard held against its manifest: by digests, in a stream; deep: every sample of it, from local disk."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.manifest import Manifest, ShardEntry
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.shard import Sample
from workflows.errors import OneFlowError
from workflows.storage import explained, open_fs, read_bytes, sha256, sha256_of, size

BLOCK_BYTES = 1 << 24

Found = tuple[list[str], Counter[str]]
"""Problems of a shard, and counts of what it holds."""


def check_shard(manifest: Manifest, deep: bool, entry: ShardEntry) -> Found:
    """What of the shard does not hold.

    Its bytes are read once, and pass by in blocks; `deep` brings a remote one to local disk for that.
    """
    url = manifest.shard_url(entry)
    try:
        index_data = read_bytes(index_url(url))
        index = ShardIndex.from_bytes(index_data)
        problems = list(_index(entry, index_data, index))
        if not deep:
            return problems + list(_tar(entry, size(url), sha256_of(url, BLOCK_BYTES))), _counted(index)
        with _local(url) as path:
            problems += _tar(entry, path.stat().st_size, _file_sha256(path))
            return problems, _counted(index) if problems else _samples(manifest, entry, path, index, problems)
    except ShardError as error:
        return [f"{entry.name}: {error}"], Counter()
    except OneFlowError as error:
        if not is_missing(error):
            # A store that does not answer proves nothing.
            raise
        return [f"{entry.name}: {error}"], Counter()


def is_missing(error: OneFlowError) -> bool:
    """Whether the store answered, and nothing was there."""
    return isinstance(error.__cause__, FileNotFoundError)


def _counted(index: ShardIndex) -> Counter[str]:
    return Counter({"samples": len(index.samples)})


def _tar(entry: ShardEntry, found: int, digest: str) -> Iterator[str]:
    if found != entry.bytes or digest != entry.sha256:
        yield f"{entry.name}: {found} bytes of another digest, {entry.bytes} of {entry.sha256[:12]} are meant"


def _index(entry: ShardEntry, data: bytes, index: ShardIndex) -> Iterator[str]:
    if sha256(data) != entry.index_sha256:
        yield f"{index_url(entry.name)}: another digest"
    if len(index.samples) != entry.samples:
        yield f"{index_url(entry.name)}: {len(index.samples)} samples, {entry.samples} are meant"


@contextmanager
def _local(url: str) -> Iterator[Path]:
    """The object as a file, for as long as this is open."""
    filesystem, path = open_fs(url)
    with explained(url):
        if isinstance(filesystem, LocalFileSystem):
            filesystem.info(path)
            yield Path(path)
            return
        with tempfile.TemporaryDirectory(prefix="oneflow-verify-") as folder:
            target = Path(folder, path.rpartition("/")[2])
            filesystem.get_file(path, str(target))
            yield target


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _samples(
    manifest: Manifest, entry: ShardEntry, path: Path, index: ShardIndex, problems: list[str]
) -> Counter[str]:
    """Counts of what the samples hold; what is wrong with them is added to `problems`, sample by sample."""
    counts: Counter[str] = Counter()
    if index != ShardIndex.of_tar(path.read_bytes()):
        problems.append(f"{index_url(entry.name)}: is not the index of its tar")
    with ShardReader(path, index) as reader:
        for number, found in enumerate(index.samples):
            try:
                sample = reader[number]
            except ShardError as error:
                problems.append(f"{entry.name}: {found.key}: {error}")
                continue
            problems += [f"{entry.name}: {sample.document.doc_id}: {p}" for p in _arrays(manifest, sample)]
            _count(counts, sample)
    told = (counts["samples"], counts["images"], counts["text_bytes"])
    if told != (entry.samples, entry.images, entry.text_bytes):
        problems.append(
            f"{entry.name}: samples, images or bytes of text are not as many as the manifest says"
        )
    return counts


def _count(counts: Counter[str], sample: Sample) -> None:
    counts["samples"] += 1
    counts["images"] += len(sample.latents)
    counts["text_bytes"] += sum(len(text.text.encode()) for text in sample.document.texts)
    counts[f"licence {sample.document.licence}"] += 1
    counts[f"source {sample.document.source}"] += 1


def _arrays(manifest: Manifest, sample: Sample) -> Iterator[str]:
    yield from _kind("latent", sample.latents, manifest.latent_shapes if manifest.codec else ())
    if manifest.features_shape is not None and len(sample.features) != len(sample.latents):
        yield "features are missing"
    shapes = () if manifest.features_shape is None else (manifest.features_shape,)
    yield from _kind("features", sample.features, shapes)


def _kind(
    name: str, arrays: Sequence[NDArray[np.float16]], shapes: Sequence[tuple[int, ...]]
) -> Iterator[str]:
    for i, array in enumerate(arrays):
        if array.shape not in shapes:
            meant = " or ".join(str(list(shape)) for shape in shapes)
            yield f"{name} {i} is {list(array.shape)}, not {meant or 'meant to be there'}"
        if not np.isfinite(array).all():
            yield f"{name} {i} has values that are not finite"
