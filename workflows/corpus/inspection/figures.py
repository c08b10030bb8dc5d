"""What a sharded corpus holds, in figures: from its manifest, some of its indexes and a few of its samples.

A corpus of a million shards is looked at in as many seconds as one of a hundred: only `MEASURED_SHARDS` of it are
opened, at equal distances. What is exact (counts, licences, accounts) comes from the manifest.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneflow_core.data.index import ShardIndex
from oneflow_core.data.lanes import generator
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.shard import Sample
from workflows.corpus.inspection.histogram import Histogram, histogram
from workflows.corpus.parts import read_part
from workflows.corpus.verify import load_manifest
from workflows.storage import exists, join, read_bytes

READS_AT_ONCE = 8
EXAMPLES = 10
INDEXED_SHARDS = 64
"""Shards, at equal distances, whose indexes are read."""
MEASURED_SHARDS = 16
"""Shards, at equal distances, of which samples are opened."""
SAMPLED = 64
"""Samples of each of these, at equal distances."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """A corpus in figures. `document_bytes` are quantiles of a document's JSON; `images` counts documents by images.

    `latent_std` is the deviation of the latents' values, for `model.dims.latent_scale`; None where there are none.
    """

    manifest: Manifest
    indexed: int
    """Documents that `document_bytes` and `images` are counted over."""
    opened: int
    """Documents that the histograms, `latent_std` and `kinds` are made of."""
    document_bytes: dict[str, int]
    images: dict[int, int]
    kinds: dict[str, int]
    histograms: tuple[Histogram, ...]
    latent_std: float | None
    samples: tuple[Sample, ...]
    """Documents chosen by the seed, to look at."""
    refused: list[dict[str, Any]]
    """A few refused rows: source, file, key, reason, head."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: the manifest without its lists of shards and inputs, and the figures."""
        tree = self.manifest.to_json()
        tree |= {name: len(getattr(self.manifest, name)) for name in ("shards", "inputs", "parts")}
        heads = [{**row, "head": row["head"].decode("utf-8", "replace")} for row in self.refused]
        figures = {
            "url": self.manifest.base,
            "indexed": self.indexed,
            "opened": self.opened,
            "document_bytes": self.document_bytes,
            "images": self.images,
            "kinds": self.kinds,
            "histograms": {h.name: h.to_json() for h in self.histograms},
            "latent_std": self.latent_std,
            "samples": [sample.document.to_json() for sample in self.samples],
        }
        return tree | figures | {"refused": heads}


def inspect(url: str, samples: int = 12, seed: int = 0) -> Inspection:
    """Look at the corpus at `url`: a version's directory, or one with a pointer `latest`.

    `samples` documents, chosen by `seed`, are among what is found.

    Raises:
        OneFlowError: no corpus there, or a shard of it that cannot be read.
    """
    manifest = load_manifest(url)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        places = spread(len(manifest.shards), INDEXED_SHARDS)
        indexes = dict(zip(places, pool.map(lambda n: _index(manifest, n), places), strict=True))
        measured = [places[i] for i in spread(len(places), MEASURED_SHARDS)]
        opened = [
            s for found in pool.map(lambda n: _spread_of(manifest, n, indexes[n]), measured) for s in found
        ]
        chosen = tuple(pool.map(lambda place: _sample(manifest, *place), choose(manifest, samples, seed)))
    entries = [entry for index in indexes.values() for entry in index.samples]
    sizes = np.array([m.size for entry in entries for m in entry.members if m.name == "json"] or [0])
    quantiles = {f"p{q}": int(np.percentile(sizes, q)) for q in (5, 50, 95)} | {"max": int(sizes.max())}
    images = Counter(sum(m.name.endswith(".latent.npy") for m in entry.members) for entry in entries)
    return Inspection(
        manifest=manifest,
        indexed=len(entries),
        opened=len(opened),
        document_bytes=quantiles,
        images=dict(sorted(images.items())),
        kinds=dict(Counter(sample.document.kind for sample in opened).most_common()),
        histograms=_histograms(opened),
        latent_std=_deviation(opened),
        samples=chosen,
        refused=_refused(manifest),
    )


def choose(manifest: Manifest, count: int, seed: int) -> list[tuple[int, int]]:
    """(shard, row) of at most `count` documents, each as likely as any other."""
    ends = np.cumsum(manifest.shards.column("samples"))
    total = int(ends[-1]) if len(ends) else 0
    drawn = generator("inspect", manifest.version, seed).choice(total, min(count, total), replace=False)
    shards = np.searchsorted(ends, drawn, side="right")
    starts = np.concatenate([[0], ends])[shards]
    return [(int(s), int(flat - start)) for s, flat, start in zip(shards, drawn, starts, strict=True)]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the first `count` integers, at equal distances, the first among them."""
    return list(range(0, count, max(1, -(-count // most))))


def _histograms(samples: Sequence[Sample]) -> tuple[Histogram, ...]:
    documents = [sample.document for sample in samples]
    images = [image for document in documents for image in document.images]
    latents = [latent for sample in samples for latent in sample.latents]
    return (
        histogram("text of a segment", "characters", [len(t.text) for d in documents for t in d.texts]),
        histogram("segments of a document", "segments", [len(d.segments) for d in documents]),
        histogram("images of a document", "images", [len(d.images) for d in documents]),
        histogram("shorter side of an original", "pixels", [min(i.width, i.height) for i in images]),
        histogram("aspect of an original", "width / height", [i.width / i.height for i in images]),
        histogram("latent of an image", "positions", [a.shape[1] * a.shape[2] for a in latents]),
    )


def _refused(manifest: Manifest) -> list[dict[str, Any]]:
    """Examples of what was refused of this corpus's inputs, out of those parts of the quarantine that it names."""
    root = manifest.base.rsplit("/", 3)[0]
    rows: list[dict[str, Any]] = []
    for part in (p.path for p in manifest.parts if p.path.startswith("quarantine/")):
        if len(rows) >= EXAMPLES:
            break
        if exists(join(root, part)):
            rows += read_part(join(root, part)).slice(0, EXAMPLES).to_pylist()
    return rows[:EXAMPLES]


def _index(manifest: Manifest, number: int) -> ShardIndex:
    return ShardIndex.from_bytes(read_bytes(index_url(manifest.shard_url(manifest.shards[number]))))


def _spread_of(manifest: Manifest, number: int, index: ShardIndex) -> list[Sample]:
    with ShardReader(manifest.shard_url(manifest.shards[number]), index) as reader:
        return [reader[row] for row in spread(len(reader), SAMPLED)]


def _sample(manifest: Manifest, number: int, row: int) -> Sample:
    with ShardReader(manifest.shard_url(manifest.shards[number]), _index(manifest, number)) as reader:
        return reader[row]


def _deviation(samples: Sequence[Sample]) -> float | None:
    values = [np.ravel(latent).astype(np.float64) for sample in samples for latent in sample.latents]
    return float(np.concatenate(values).std()) if values else None
