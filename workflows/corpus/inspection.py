"""Inspect: what a sharded corpus holds, in figures, from its manifest, its indexes and a few of its samples."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from oneflow_core.data.index import ShardIndex
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.reader import ShardReader, index_url
from workflows.corpus.parts import list_parts, read_part
from workflows.corpus.verify import load_manifest
from workflows.storage import join, read_bytes

Array = NDArray[np.float64]
T = TypeVar("T")

READS_AT_ONCE = 8
EXAMPLES = 10
SAMPLED = 32
"""Samples of each shard, at equal distances, whose latents are measured."""
MEASURED_SHARDS = 16
"""Shards, at equal distances, that these samples are taken from."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """A corpus in figures. `document_bytes` are quantiles of a document's JSON; `images` counts documents by images.

    `latent_std` is the deviation of the latents' values, for `model.dims.latent_scale`; None where there are none.
    """

    manifest: Manifest
    document_bytes: dict[str, int]
    images: dict[int, int]
    latent_std: float | None
    refused: list[dict[str, Any]]
    """A few refused rows: source, file, key, reason, head."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: the manifest without its lists of shards and inputs, and the figures."""
        tree = self.manifest.to_json()
        tree |= {"shards": len(tree["shards"]), "inputs": len(tree["inputs"]), "url": self.manifest.base}
        heads = [{**row, "head": row["head"].decode("utf-8", "replace")} for row in self.refused]
        figures = {
            "document_bytes": self.document_bytes,
            "images": self.images,
            "latent_std": self.latent_std,
        }
        return tree | figures | {"refused": heads}


def inspect(url: str) -> Inspection:
    """Look at the corpus at `url`: a version's directory, or one with a pointer `latest`.

    Raises:
        OneFlowError: no corpus there.
    """
    manifest = load_manifest(url)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        indexes = list(pool.map(lambda s: _index(manifest.shard_url(s)), manifest.shards))
        shards = list(zip(map(manifest.shard_url, manifest.shards), indexes, strict=True))
        latents = list(pool.map(_latents, _spread(shards, MEASURED_SHARDS)))
    entries = [entry for index in indexes for entry in index.samples]
    sizes = np.array([m.size for entry in entries for m in entry.members if m.name == "json"] or [0])
    quantiles = {f"p{q}": int(np.percentile(sizes, q)) for q in (5, 50, 95)} | {"max": int(sizes.max())}
    images = [sum(m.name.endswith(".latent.npy") for m in entry.members) for entry in entries]
    numbers, counts = np.unique(np.array(images or [0]), return_counts=True)
    histogram = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return Inspection(manifest, quantiles, histogram, _deviation(latents), _refused(manifest))


def render(found: Inspection) -> str:
    """The figures as tables for a terminal."""
    from rich.console import Console

    manifest, totals = found.manifest, found.manifest.totals
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(f"[bold]{manifest.name}[/] version {manifest.version} at {manifest.base}")
    console.print(
        f"{totals.samples:,} documents, {totals.images:,} images, {totals.text_bytes:,} bytes of text, "
        f"{len(manifest.shards)} shards of {totals.bytes / 1e6:,.1f} MB together"
    )
    wide = "" if found.latent_std is None else f", deviation {found.latent_std:.2f}"
    console.print(f"latents {_shape(manifest.latent_shape)} by {manifest.codec}{wide}")
    console.print(f"features {_shape(manifest.features_shape)} by {manifest.encoder}")
    lengths = ", ".join(f"{name} {size:,}" for name, size in found.document_bytes.items())
    console.print(f"bytes of a document's JSON: {lengths}")
    console.print(
        "images: " + ", ".join(f"{count:,} documents with {n}" for n, count in found.images.items())
    )
    licences = sorted(manifest.licences.items(), key=lambda item: -item[1])
    console.print("licences: " + ", ".join(f"{name} {count:,}" for name, count in licences))
    console.print(_sources(manifest))
    if found.refused:
        console.print(_examples(found.refused))
    return console.export_text()


def _sources(manifest: Manifest) -> Any:
    from rich.table import Table

    table = Table("source", "files", "read", "kept", "refused")
    for source, account in manifest.accounts.items():
        files = sum(i.source == source for i in manifest.inputs)
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(account.refused.items()))
        table.add_row(source, f"{files:,}", f"{account.read:,}", f"{account.kept:,}", reasons or "-")
    return table


def _examples(rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("refused", "key", "why", "first bytes")
    for row in rows:
        head = row["head"].decode("utf-8", "replace")
        shown = "".join(c if c.isprintable() else "." for c in head)[:40]
        table.add_row(
            *(Text(str(v)) for v in (row["file"].rpartition("/")[2], row["key"], row["reason"], shown))
        )
    return table


def _refused(manifest: Manifest) -> list[dict[str, Any]]:
    """Examples of what was refused of this corpus's inputs, out of the quarantine of its root."""
    wanted = {source for source, account in manifest.accounts.items() if account.refused}
    files = {i.url for i in manifest.inputs if i.source in wanted}
    root = manifest.base.rsplit("/", 3)[0]
    rows: list[dict[str, Any]] = []
    for url in list_parts(join(root, "quarantine", "ingest")).values():
        if len(rows) >= EXAMPLES:
            break
        rows += [row for row in read_part(url).to_pylist() if row["file"] in files]
    return rows[:EXAMPLES]


def _index(url: str) -> ShardIndex:
    return ShardIndex.from_bytes(read_bytes(index_url(url)))


def _latents(shard: tuple[str, ShardIndex]) -> Array:
    """Values of the latents of a few samples of one shard, [values]."""
    url, index = shard
    with ShardReader(url, index) as reader:
        samples = [reader[n] for n in _spread(range(len(reader)), SAMPLED)]
    values = [np.ravel(latent).astype(np.float64) for sample in samples for latent in sample.latents]
    return np.concatenate(values) if values else np.zeros(0)


def _deviation(latents: Sequence[Array]) -> float | None:
    values = np.concatenate(latents) if latents else np.zeros(0)
    return float(values.std()) if values.size else None


def _spread(things: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, at equal distances."""
    return list(things[:: max(1, -(-len(things) // most))])


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "(none)"
