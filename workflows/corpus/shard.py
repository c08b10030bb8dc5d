"""Shard: documents and their arrays, in one global seeded order, into webdataset tars and a manifest.

A document falls into the shard, and at the place in it, that a hash of (seed, doc_id) says: so the shards are the
same whatever machine wrote which, and Ray Data only has to bring the rows of a shard together.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from oneflow_core.data.index import INDEX_SCHEMA
from oneflow_core.data.manifest import LATEST_NAME, Input, Manifest, Part, ShardEntry, Totals
from oneflow_core.data.table import Table
from workflows.corpus import ingest
from workflows.corpus.batch import batch_urls
from workflows.corpus.chunks import images_of
from workflows.corpus.cluster import cluster
from workflows.corpus.config import FORMAT, CorpusConfig
from workflows.corpus.digests import SHA256, Digests
from workflows.corpus.encode import load_stores
from workflows.corpus.encoded import Shape, Store
from workflows.corpus.hashes import hashes_of
from workflows.corpus.ingest import UnitReport
from workflows.corpus.models import Models, identify
from workflows.corpus.parts import list_parts
from workflows.corpus.provenance import created_by
from workflows.corpus.refusals import Refusals
from workflows.corpus.selection import Selection, select
from workflows.corpus.shard_writing import Piece, Writing, Written, write
from workflows.corpus.units import kept_of, list_units
from workflows.errors import OneFlowError
from workflows.storage import join, put_atomic

TAR_MEMBER_BYTES = 512 + 256
"""Header of a member, and padding on average."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What shard did; `reused` of the shards had been written by a run that did not finish."""

    url: str
    manifest: Manifest
    reused: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Plan:
    version: str
    writing: Writing
    codec: str | None
    encoder: str | None
    latent_shapes: tuple[Shape, ...]
    features_shape: Shape | None
    quarantine: tuple[str, ...]
    """URLs of the parts of what encode refused of these inputs."""
    batches: tuple[str, ...]
    """URLs of the batches that were found by trial."""


def run(
    config: CorpusConfig,
    models: Models | None = None,
    partitions: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> ShardReport:
    """Write the shards of this version, then its manifest, then point `latest` at it.

    `models` are the ids of codec and encoder where they are known already; `partitions` those of the shuffle, which
    change no byte. `check` is called before anything becomes visible, and raises where another process builds the
    corpus now.

    Raises:
        OneFlowError: a source that was not ingested, an image that was not encoded.
    """
    begin = time.monotonic()
    units = ingest.reports(config, list_units(config))
    refusals = Refusals.load(config)
    selection = select(config, units, refusals)
    plan = _plan(config, units, selection, refusals, models)
    url = plan.writing.url
    with cluster():
        written = write(plan.writing, partitions)
    manifest = _manifest(config, units, selection, plan, written)
    for name, data in manifest.files().items():
        check()
        put_atomic(join(url, name), data)
    check()
    put_atomic(join(config.root, "shards", config.name, LATEST_NAME), f"{plan.version}\n".encode())
    return ShardReport(url, manifest, written.reused, time.monotonic() - begin)


def _plan(
    config: CorpusConfig,
    units: Sequence[UnitReport],
    selection: Selection,
    refusals: Refusals,
    models: Models | None,
) -> _Plan:
    if models is None:
        models = identify(config) if any(unit.images for unit in units) else (None, None)
    stores = load_stores(config, *models)
    held = [images_of(unit, selection.taken(number)) for number, unit in enumerate(units)]
    pieces = [
        _piece(unit, selection.taken(number), images, stores)
        for number, (unit, images) in enumerate(zip(units, held, strict=True))
    ]
    used = np.unique(np.concatenate([np.empty(0, SHA256), *held]))
    version = _version(config, units, used, stores)
    shapes = [store.shapes_of(used) if store.model is not None else {} for store in stores]
    sizes = _Sizes.of(units, selection, [_mean_bytes(found) for found in shapes if found])
    url = join(config.root, "shards", config.name, version)
    writing = Writing(
        url,
        sizes.shards(config),
        tuple(pieces),
        config.seed,
        sizes.bytes,
        round(sizes.documents),
        sizes.image_bytes,
    )
    every = [images_of(unit, np.ones(unit.account.kept, np.bool_)) for unit in units if len(refusals.images)]
    refused = refusals.parts_of(np.concatenate([np.empty(0, SHA256), *every]))
    codec, encoder = (store.model for store in stores)
    features = next(iter(shapes[1]), None)
    return _Plan(
        version,
        writing,
        codec,
        encoder,
        tuple(sorted(shapes[0])),
        features,
        tuple(refused),
        batch_urls(config, stores),
    )


def _piece(unit: UnitReport, taken: NDArray[np.bool_], images: Digests, stores: Sequence[Store]) -> Piece:
    for store in stores:
        missing = 0 if store.model is None else int((~store.has(images)).sum())
        if missing:
            cause = f"{missing} of its images have no {store.kind} by {store.model}"
            raise OneFlowError(unit.unit.main, cause, "run oneflow corpus build with --stage encode")
    latents, features = (tuple(s.parts_of(images)) if s.model is not None else () for s in stores)
    return Piece(unit.url, taken, latents, features)


def _version(
    config: CorpusConfig, units: Sequence[UnitReport], images: Digests, stores: Sequence[Store]
) -> str:
    """Digest of the config, of the inputs' content and of the arrays as stored: what decides the shards' bytes.

    `images` are sorted."""
    digest = hashlib.sha256(f"{FORMAT}:{INDEX_SCHEMA}:{config.digest()}".encode())
    for unit in units:
        digest.update(f"{unit.unit.source}:{unit.unit.name}:{unit.sha256}\n".encode())
        digest.update(f"{unit.documents_sha256}\n".encode())
    digest.update(images.tobytes())
    for store in stores:
        digest.update(f"{store.kind}:{store.model}\n".encode())
        if store.model is not None:
            digest.update(store.digests_of(images).tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the taken documents come to, about."""

    bytes: float
    documents: float
    image_bytes: float

    @classmethod
    def of(cls, units: Sequence[UnitReport], selection: Selection, arrays: Sequence[float]) -> "_Sizes":
        """`arrays` are the mean bytes of the arrays of an image, by kind."""
        size = documents = 0.0
        image = sum(128 + TAR_MEMBER_BYTES + own for own in arrays)
        for number, unit in enumerate(units):
            share = float(selection.taken(number).mean()) if unit.account.kept else 0.0
            own = unit.document_bytes + unit.account.kept * TAR_MEMBER_BYTES
            size += share * (own + unit.images * image)
            documents += share * unit.account.kept
        return cls(size, documents, sum(arrays))

    def shards(self, config: CorpusConfig) -> int:
        """How many shards that makes."""
        wanted = max(-(-self.bytes // config.shard.target_bytes), config.shard.minimum)
        return max(1, int(min(wanted, self.documents)))


def _mean_bytes(shapes: dict[Shape, int]) -> float:
    return sum(2 * int(np.prod(shape)) * count for shape, count in shapes.items()) / sum(shapes.values())


def _manifest(
    config: CorpusConfig, units: Sequence[UnitReport], selection: Selection, plan: _Plan, written: Written
) -> Manifest:
    return Manifest(
        name=config.name,
        version=plan.version,
        created_by=created_by(config),
        inputs=Table.of(Input, (unit.input for unit in units)),
        parts=Table.of(Part, map(Part, _parts(config, units, plan))),
        codec=plan.codec,
        encoder=plan.encoder,
        latent_shapes=tuple(cast(tuple[int, int, int], shape) for shape in plan.latent_shapes),
        features_shape=cast(tuple[int, int] | None, plan.features_shape),
        shards=Table.of(ShardEntry, written.entries),
        totals=Totals.of(written.entries),
        licences=dict(written.licences),
        accounts=selection.accounts(units),
    )


def _parts(config: CorpusConfig, units: Sequence[UnitReport], plan: _Plan) -> list[str]:
    """Paths below the root of all that the version was made from, and of what was refused on the way."""
    used = {url for piece in plan.writing.pieces for url in (piece.url, *piece.latents, *piece.features)}
    refused = {unit.quarantine for unit in units if unit.account.refused}
    hashed = {hashes_of(unit.url) for unit in units if config.duplicates.near != "off"}
    fetched = {url for s in config.sources for url in list_parts(config.root, "images", s.name).values()}
    kept = fetched & {kept_of(config, unit.unit) for unit in units}
    found = used | refused | hashed | kept | set(plan.quarantine) | set(plan.batches)
    return sorted(url.removeprefix(config.root).lstrip("/") for url in found)
