"""Corpora that the loader's benchmarks read: shards as training would find them, of documents in three sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oneflow_core.data.manifest import Account, Manifest, ShardEntry, Totals
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample, write_shard
from oneflow_core.data.table import Table
from oneflow_core.document import Document, ImageSegment, TextSegment

WORDS = (
    "a",
    "photograph",
    "of",
    "red",
    "bicycles",
    "on",
    "the",
    "old",
    "stone",
    "wall",
    "beside",
    "green",
    "doors",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """Documents of one image and one text each: `samples` of them in each of `shards` shards."""

    latent: tuple[int, int, int]
    features: tuple[int, int] | None
    samples: int
    shards: int


KINDS: Mapping[str, Kind] = {
    "features": Kind((16, 32, 32), (256, 768), 150, 2),
    "latents": Kind((16, 32, 32), None, 1500, 2),
    "small": Kind((16, 8, 8), (16, 128), 4000, 2),
}
"""256 pixels through SD3's VAE with SigLIP 2 base beside, and without; and the embedded encoders' 64 pixels."""


def write_corpus(directory: Path, name: str, kind: Kind) -> Manifest:
    """A corpus of that kind in `directory`; the same bytes each time."""
    rng, parts = np.random.default_rng(0), range(kind.shards)
    made = ([make_sample(f"{name}-{p}-{i:06d}", kind, rng) for i in range(kind.samples)] for p in parts)
    return store_corpus(directory, name, kind, made)


def store_corpus(directory: Path, name: str, kind: Kind, parts: Iterable[list[Sample]]) -> Manifest:
    """A corpus with a shard of each part in `directory`, manifest last."""
    directory.mkdir(parents=True)
    entries = []
    for number, samples in enumerate(parts):
        shard, file = write_shard(samples), directory / f"shard-{number:06d}.tar"
        index = shard.index.to_bytes()
        file.write_bytes(shard.data)
        Path(index_url(str(file))).write_bytes(index)
        images, texts = sum(len(s.latents) for s in samples), [t for s in samples for t in s.document.texts]
        text_bytes = sum(len(text.text.encode()) for text in texts)
        digests = shard.sha256, hashlib.sha256(index).hexdigest()
        entries.append(ShardEntry(file.name, len(samples), images, text_bytes, len(shard.data), *digests))
    for file_name, data in manifest_of(name, kind, entries).files().items():
        (directory / file_name).write_bytes(data)
    return Manifest.load(str(directory))


def manifest_of(name: str, kind: Kind, entries: list[ShardEntry]) -> Manifest:
    """The manifest of a corpus of those shards."""
    totals = Totals.of(entries)
    return Manifest(
        name=name,
        version="bench",
        created_by={"package": "oneflow bench", "git_commit": "unknown", "config_digest": "none"},
        codec="bench@0",
        encoder="bench@0" if kind.features else None,
        latent_shapes=(kind.latent,),
        features_shape=kind.features,
        totals=totals,
        licences={"CC-BY-4.0": totals.samples},
        accounts={name: Account(totals.samples, totals.samples)},
        shards=Table.of(ShardEntry, entries),
    )


def make_sample(doc_id: str, kind: Kind, rng: np.random.Generator) -> Sample:
    """A document of that kind, with arrays of noise."""
    words = rng.choice(WORDS, rng.integers(8, 60))
    image = ImageSegment(hashlib.sha256(doc_id.encode()).hexdigest(), 640, 480)
    meta = {"url": f"https://example.org/{doc_id}.jpg", "similarity": f"{rng.random():.4f}"}
    document = Document(doc_id, "bench", "CC-BY-4.0", (TextSegment(" ".join(words)), image), meta)
    arrays = (_array(kind.latent, rng),), (_array(kind.features, rng),) if kind.features else ()
    return Sample(document, *arrays)


def _array(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape, np.float32).astype(np.float16)


def read_plainly(directory: Path) -> Iterator[Sample]:
    """All samples of a corpus in order, for whoever stores them otherwise."""
    from oneflow_core.data.reader import ShardReader

    for path in sorted(directory.glob("*.tar")):
        with ShardReader(path) as reader:
            yield from reader
