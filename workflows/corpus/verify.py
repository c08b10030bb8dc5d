"""Verify: a sharded corpus against its manifest, by digests; deep: every sample of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.manifest import LISTS, MANIFEST_NAME, Manifest, ManifestError, ShardEntry
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.shard import Sample
from oneflow_core.data.table import Table
from workflows.corpus.progress import Progress
from workflows.errors import OneFlowError, Refused
from workflows.storage import explained, join, read_bytes, sha256

SHARDS_AT_ONCE = 4
PROBLEMS_TOLD = 5


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was found to hold: `samples` were opened one by one if `deep`, else counted by the indexes."""

    manifest: Manifest
    deep: bool
    samples: int

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = self.manifest
        return {
            "url": found.base,
            "version": found.version,
            "shards": len(found.shards),
            "samples": self.samples,
            "deep": self.deep,
            "ok": True,
        }


def load_manifest(url: str) -> Manifest:
    """The manifest at `url`.

    Raises:
        OneFlowError: there is none.
        Refused: it is there, but not valid.
    """
    try:
        with explained(url):
            return _load(url)
    except ManifestError as error:
        raise Refused(f"corpus {url}", str(error), "build it again with oneflow corpus build") from None


def verify(url: str, deep: bool = False) -> VerifyReport:
    """Hold every shard of the corpus at `url` against its manifest.

    Raises:
        OneFlowError: no corpus there.
        Refused: something does not hold; the first problems are told, and how many there are.
    """
    manifest = load_manifest(url)
    progress = Progress("verify", len(manifest.shards), "shards")
    problems = list(_lists(manifest))
    seen = Counter[str]()
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        for found, counts in pool.map(partial(_shard, manifest, deep), manifest.shards):
            problems += found
            seen.update(counts)
            progress.add(1)
    if deep and not problems:
        problems += _sums(manifest, seen)
    if problems:
        more = f" (and {len(problems) - PROBLEMS_TOLD} more)" if len(problems) > PROBLEMS_TOLD else ""
        told = "; ".join(problems[:PROBLEMS_TOLD]) + more
        raise Refused(f"corpus {manifest.base}", told, "build it again with oneflow corpus build")
    progress.finish("all as the manifest says")
    return VerifyReport(manifest, deep, seen["samples"])


def _load(url: str) -> Manifest:
    try:
        return Manifest.load(url)
    except FileNotFoundError as error:
        raise OneFlowError(
            f"corpus {url}", str(error), "name the directory that oneflow corpus build told"
        ) from None


def _lists(manifest: Manifest) -> Iterator[str]:
    """The manifest's own bytes, and the lists beside it."""
    if read_bytes(join(manifest.base, MANIFEST_NAME)) != manifest.to_bytes():
        yield f"{MANIFEST_NAME}: was written by something else"
    for name, file in manifest.lists.items():
        data = read_bytes(join(manifest.base, f"{name}.parquet"))
        if sha256(data) != file.sha256:
            yield f"{name}.parquet: another digest"
        elif Table.of_bytes(LISTS[name], data) != getattr(manifest, name):
            yield f"{name}.parquet: is not the list that the manifest has"


def _shard(manifest: Manifest, deep: bool, entry: ShardEntry) -> tuple[list[str], Counter[str]]:
    """Problems of a shard, and counts of what it holds."""
    url = manifest.shard_url(entry)
    try:
        data, index_data = read_bytes(url), read_bytes(index_url(url))
        index = ShardIndex.from_bytes(index_data)
        problems = list(_digests(entry, data, index_data, index))
        counts = Counter({"samples": len(index.samples)})
        if deep and not problems:
            counts = _samples(manifest, entry, ShardReader(data, index), problems)
    except (OneFlowError, ShardError) as error:
        return [f"{entry.name}: {error}"], Counter()
    return problems, counts


def _digests(entry: ShardEntry, data: bytes, index_data: bytes, index: ShardIndex) -> Iterator[str]:
    if len(data) != entry.bytes or sha256(data) != entry.sha256:
        yield f"{entry.name}: {len(data)} bytes of another digest, {entry.bytes} of {entry.sha256[:12]} are meant"
    if sha256(index_data) != entry.index_sha256:
        yield f"{index_url(entry.name)}: another digest"
    if len(index.samples) != entry.samples:
        yield f"{index_url(entry.name)}: {len(index.samples)} samples, {entry.samples} are meant"


def _samples(manifest: Manifest, entry: ShardEntry, reader: ShardReader, problems: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    if reader.index != ShardIndex.of_tar(reader.read_tar()):
        problems.append(f"{index_url(entry.name)}: is not the index of its tar")
    for sample in reader:
        problems += [f"{entry.name}: {sample.document.doc_id}: {p}" for p in _arrays(manifest, sample)]
        counts["samples"] += 1
        counts["images"] += len(sample.latents)
        counts["text_bytes"] += sum(len(text.text.encode()) for text in sample.document.texts)
        counts[f"licence {sample.document.licence}"] += 1
        counts[f"source {sample.document.source}"] += 1
    if (counts["samples"], counts["images"], counts["text_bytes"]) != (
        entry.samples,
        entry.images,
        entry.text_bytes,
    ):
        problems.append(
            f"{entry.name}: samples, images or bytes of text are not as many as the manifest says"
        )
    return counts


def _arrays(manifest: Manifest, sample: Sample) -> Iterator[str]:
    yield from _kind("latent", sample.latents, manifest.latent_shapes)
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


def _sums(manifest: Manifest, seen: Counter[str]) -> Iterator[str]:
    for licence, count in manifest.licences.items():
        if seen[f"licence {licence}"] != count:
            yield f"{seen[f'licence {licence}']} samples under {licence}, {count} are meant"
    for source, account in manifest.accounts.items():
        if seen[f"source {source}"] != account.kept:
            yield f"{seen[f'source {source}']} samples of {source}, {account.kept} are meant"
