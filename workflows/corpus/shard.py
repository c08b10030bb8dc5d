"""Shard: documents and their arrays, in one global seeded order, into webdataset tars and a manifest.

A document falls into the shard, and at the place in it, that a hash of (seed, doc_id) says: so the shards are the
same whatever machine wrote which, and Ray Data only has to bring the rows of a shard together.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oneflow_core.data.manifest import LATEST_NAME, Input, Manifest, Part, ShardEntry, Totals
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample, write_shard
from oneflow_core.data.table import Table
from oneflow_core.document import Document
from workflows.corpus import ingest
from workflows.corpus.cluster import Environment, cluster, cpus
from workflows.corpus.config import FORMAT, CorpusConfig
from workflows.corpus.encode import Models, identify, images_of, load_stores
from workflows.corpus.encoded import Store, read_encoded
from workflows.corpus.hashes import hashes_of
from workflows.corpus.ingest import UnitReport
from workflows.corpus.parts import read_part
from workflows.corpus.progress import Progress
from workflows.corpus.provenance import created_by
from workflows.corpus.selection import Selection, order_of, select
from workflows.corpus.units import list_units
from workflows.errors import OneFlowError
from workflows.storage import join, put_atomic

TAR_MEMBER_BYTES = 512 + 256
"""Header of a member, and padding on average."""
ROWS = 512
"""Documents that a task joins with their arrays and passes on at once."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What shard did."""

    url: str
    manifest: Manifest
    seconds: float


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of documents, which of its rows are taken, and the parts of arrays that these need."""

    url: str
    taken: NDArray[np.bool_]
    latents: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    version: str
    shards: int
    pieces: tuple[_Piece, ...]
    codec: str | None
    encoder: str | None
    latent_shape: tuple[int, ...] | None
    features_shape: tuple[int, ...] | None


def run(
    config: CorpusConfig, models: Models | None = None, check: Callable[[], None] = lambda: None
) -> ShardReport:
    """Write the shards of this version, then its manifest, then point `latest` at it.

    `models` are the ids of codec and encoder where they are known already: to load both only for that takes time.
    `check` is called before anything becomes visible, and raises where another process builds the corpus now.

    Raises:
        OneFlowError: a source that was not ingested, an image that was not encoded.
    """
    begin = time.monotonic()
    units = ingest.reports(config, list_units(config))
    selection = select(config, units)
    with cluster():
        plan = _plan(config, units, selection, models)
        url = join(config.root, "shards", config.name, plan.version)
        entries, licences = _write(config, plan, url)
    manifest = _manifest(config, units, selection, plan, entries, licences)
    for name, data in manifest.files().items():
        check()
        put_atomic(join(url, name), data)
    check()
    put_atomic(join(config.root, "shards", config.name, LATEST_NAME), f"{plan.version}\n".encode())
    return ShardReport(url, manifest, time.monotonic() - begin)


def _plan(
    config: CorpusConfig, units: Sequence[UnitReport], selection: Selection, models: Models | None
) -> _Plan:
    if models is None:
        models = identify(config) if any(unit.images for unit in units) else (None, None)
    latents, features = load_stores(config, *models)
    pieces, used = [], set[str]()
    for number, unit in enumerate(units):
        taken = selection.taken(number)
        images = set(images_of(unit, taken))
        used |= images
        pieces.append(_piece(unit, taken, sorted(images), latents, features))
    version = _version(config, units, used, (latents, features))
    shapes = latents.shape(), features.shape()
    count = _shards(config, units, selection, shapes)
    return _Plan(version, count, tuple(pieces), latents.model, features.model, *shapes)


def _piece(
    unit: UnitReport, taken: NDArray[np.bool_], images: Sequence[str], latents: Store, features: Store
) -> _Piece:
    for store in (latents, features):
        missing = [s for s in images if store.model is not None and s not in store.places]
        if missing:
            cause = f"{len(missing)} of its images have no {store.kind} by {store.model}"
            raise OneFlowError(unit.unit.main, cause, "run oneflow corpus build with --stage encode")
    stored = [tuple(s.parts_of(images)) if s.model is not None else () for s in (latents, features)]
    return _Piece(unit.url, taken, *stored)


def _version(
    config: CorpusConfig, units: Sequence[UnitReport], images: set[str], stores: Sequence[Store]
) -> str:
    """Digest of the config, of the inputs' content and of the arrays as stored: what decides the shards' bytes."""
    digest = hashlib.sha256(f"{FORMAT}:{config.digest()}".encode())
    for unit in units:
        digest.update(f"{unit.unit.source}:{unit.unit.name}:{unit.sha256}\n".encode())
        digest.update(f"{unit.documents_sha256}\n".encode())
    for store in stores:
        digest.update(f"{store.kind}:{store.model}\n".encode())
        if store.model is not None:
            for sha256 in sorted(images):
                digest.update(f"{sha256}:{store.places[sha256][1]}\n".encode())
    return digest.hexdigest()[:16]


def _shards(
    config: CorpusConfig,
    units: Sequence[UnitReport],
    selection: Selection,
    shapes: Sequence[tuple[int, ...] | None],
) -> int:
    arrays = [128 + 2 * int(np.prod(shape)) + TAR_MEMBER_BYTES for shape in shapes if shape is not None]
    size = documents = 0.0
    for number, unit in enumerate(units):
        share = float(selection.taken(number).mean()) if unit.account.kept else 0.0
        own = unit.document_bytes + unit.account.kept * TAR_MEMBER_BYTES
        size += share * (own + unit.images * sum(arrays))
        documents += share * unit.account.kept
    wanted = max(-(-size // config.shard.target_bytes), config.shard.minimum)
    return max(1, int(min(wanted, documents)))


def _write(config: CorpusConfig, plan: _Plan, url: str) -> tuple[list[ShardEntry], Counter[str]]:
    """The shards written to `url`; with samples by licence."""
    import ray.data

    progress = Progress("shard", plan.shards, "shards")
    environment = Environment.of_driver()
    context = ray.data.DataContext.get_current()
    usual, context.shuffle_strategy = context.shuffle_strategy, ray.data.context.ShuffleStrategy.SHUFFLE_V2
    rows = ray.data.from_items(
        [{"piece": i} for i in range(len(plan.pieces))], override_num_blocks=len(plan.pieces)
    )
    joined = rows.map_batches(_Join(config, plan, environment), batch_size=1, batch_format="pyarrow")
    grouped = joined.groupby("shard", num_partitions=min(plan.shards, 4 * cpus()))
    written = grouped.map_groups(_Write(url, environment).__call__, batch_format="pyarrow")
    entries: list[ShardEntry] = []
    licences = Counter[str]()
    try:
        for row in written.iter_rows():
            entries.append(ShardEntry(**json.loads(row["entry"])))
            licences.update(json.loads(row["licences"]))
            progress.add(1)
    finally:
        context.shuffle_strategy = usual
    documents, size = sum(e.samples for e in entries), sum(e.bytes for e in entries)
    progress.finish(f"{documents:,} documents, {size / 1e6:,.1f} MB")
    return sorted(entries, key=lambda entry: entry.name), licences


SHUFFLED = pa.schema(
    [
        ("shard", pa.int64()),
        ("order", pa.uint64()),
        ("document", pa.string()),
        ("latents", pa.list_(pa.binary())),
        ("features", pa.list_(pa.binary())),
        ("text_bytes", pa.int64()),
        ("latent_shape", pa.list_(pa.int32())),
        ("features_shape", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class _Join:
    """Rows of a part of documents with their arrays, and with the shard and place they belong to."""

    config: CorpusConfig
    plan: _Plan
    environment: Environment

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        self.environment.apply()
        piece = self.plan.pieces[batch["piece"][0].as_py()]
        documents = read_part(piece.url).filter(pa.array(piece.taken))
        images = {s for row in documents["images"].to_pylist() for s in row}
        arrays = [read_encoded(parts, images) for parts in (piece.latents, piece.features)]
        for start in range(0, documents.num_rows, ROWS):
            rows = documents.slice(start, ROWS).to_pylist()
            yield pa.Table.from_pylist([self._row(row, arrays) for row in rows], SHUFFLED)

    def _row(self, row: Mapping[str, Any], arrays: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        order = order_of(self.config.seed, row["doc_id"])
        latents, features = ([found[s].tobytes() for s in row["images"] if found] for found in arrays)
        return {
            "shard": order * self.plan.shards >> 64,
            "order": order,
            "document": row["document"],
            "latents": latents,
            "features": features,
            "text_bytes": row["text_bytes"],
            "latent_shape": self.plan.latent_shape,
            "features_shape": self.plan.features_shape,
        }


@dataclass(frozen=True)
class _Write:
    """All rows of one shard into its tar and index."""

    url: str
    environment: Environment

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.environment.apply()
        rows = rows.sort_by([("order", "ascending"), ("document", "ascending")])
        samples = [_sample(row) for row in rows.to_pylist()]
        shard = write_shard(samples)
        index = shard.index.to_bytes()
        name = f"shard-{rows['shard'][0].as_py():06d}.tar"
        put_atomic(join(self.url, name), shard.data)
        put_atomic(join(self.url, index_url(name)), index)
        entry = {
            "name": name,
            "samples": len(samples),
            "images": sum(len(s.latents) for s in samples),
            "text_bytes": sum(rows["text_bytes"].to_pylist()),
            "bytes": len(shard.data),
            "sha256": shard.sha256,
            "index_sha256": hashlib.sha256(index).hexdigest(),
        }
        licences = Counter(s.document.licence for s in samples)
        columns = {"entry": entry, "licences": licences}
        return pa.table({name: [json.dumps(value)] for name, value in columns.items()})


def _sample(row: Mapping[str, Any]) -> Sample:
    arrays = [
        tuple(np.frombuffer(data, "<f2").reshape(row[shape]) for data in row[kind])
        for kind, shape in (("latents", "latent_shape"), ("features", "features_shape"))
    ]
    return Sample(Document.from_json(json.loads(row["document"])), *arrays)


def _manifest(
    config: CorpusConfig,
    units: Sequence[UnitReport],
    selection: Selection,
    plan: _Plan,
    entries: Sequence[ShardEntry],
    licences: Mapping[str, int],
) -> Manifest:
    return Manifest(
        name=config.name,
        version=plan.version,
        created_by=created_by(config),
        inputs=Table.of(Input, (unit.input for unit in units)),
        parts=Table.of(Part, map(Part, _parts(config, units, plan))),
        codec=plan.codec,
        encoder=plan.encoder,
        latent_shapes=() if plan.latent_shape is None else (cast(tuple[int, int, int], plan.latent_shape),),
        features_shape=cast(tuple[int, int] | None, plan.features_shape),
        shards=Table.of(ShardEntry, entries),
        totals=Totals.of(entries),
        licences=dict(licences),
        accounts=selection.accounts(units),
    )


def _parts(config: CorpusConfig, units: Sequence[UnitReport], plan: _Plan) -> list[str]:
    """Paths below the root of all that the version was made from, and of what was refused on the way."""
    used = {url for piece in plan.pieces for url in (piece.url, *piece.latents, *piece.features)}
    refused = {unit.quarantine for unit in units if unit.account.refused}
    hashed = {hashes_of(unit.url) for unit in units if config.duplicates.near != "off"}
    return sorted(url.removeprefix(config.root).lstrip("/") for url in used | refused | hashed)
