"""Writing shards: rows of documents with their arrays, brought together by Ray Data and written by shard.

A shard whose tar and index are there was written by an earlier run of this version, which decides its bytes: it is
read for its entry and not written again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.manifest import ShardEntry
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.shard import Sample, write_shard
from oneflow_core.document import Document
from workflows.corpus.cluster import Environment, cpus
from workflows.corpus.encoded import Arrays
from workflows.corpus.parts import read_part
from workflows.corpus.progress import Progress
from workflows.corpus.selection import order_of
from workflows.corpus.tally import Tally, tallied
from workflows.storage import explained, join, open_fs, put_atomic, read_bytes

ROWS, ARRAY_BYTES = 512, 32e6
"""Most documents, and bytes of arrays about, that a task joins and passes on at once."""
PARTITION_BYTES = 256e6
"""About what one task of the shuffle holds."""
PIECES_ALONE = 256
"""A corpus of at most one partition and so many parts is written by one task, which costs less than a shuffle."""
SHUFFLED = pa.schema(
    [
        ("shard", pa.int64()),
        ("order", pa.uint64()),
        ("document", pa.string()),
        ("latents", pa.list_(pa.binary())),
        ("features", pa.list_(pa.binary())),
        ("text_bytes", pa.int64()),
        ("latents_shapes", pa.list_(pa.list_(pa.int32()))),
        ("features_shapes", pa.list_(pa.list_(pa.int32()))),
    ]
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of documents, which of its rows are taken, and the parts of arrays that these need."""

    url: str
    taken: NDArray[np.bool_]
    latents: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Writing:
    """What is written: pieces to so many shards at `url`, of `size` bytes and so many documents in all, about."""

    url: str
    shards: int
    pieces: tuple[Piece, ...]
    seed: int
    size: float
    documents: int
    image_bytes: float
    """Bytes of the arrays of an image, about."""


@dataclass(frozen=True, slots=True)
class Written:
    """Entries of all shards by name, samples by licence, and how many of the shards had been written before."""

    entries: Sequence[ShardEntry]
    licences: Counter[str]
    reused: int


def write(writing: Writing, partitions: int | None = None) -> Written:
    """Write what is missing. The number of partitions of the shuffle changes no byte; None: as size and CPUs say,
    or no shuffle at all where one task can hold the corpus."""
    found = dict(_complete(writing))
    reused = len(found)
    progress = Progress("shard", writing.shards - reused, "shards")
    if reused < writing.shards:
        small = writing.size < PARTITION_BYTES and len(writing.pieces) <= PIECES_ALONE
        done = frozenset(found)
        if small and partitions is None:
            rows = _by_one_task(writing, done)
        else:
            rows = _shuffled(writing, done, partitions or _partitions(writing))
        for row in rows:
            entry = ShardEntry(**json.loads(row["entry"]))
            found[entry.name] = entry, Counter(json.loads(row["licences"]))
            progress.add(1)
    entries = [found[name][0] for name in sorted(found)]
    licences = sum((licences for _, licences in found.values()), Counter[str]())
    documents, size = sum(e.samples for e in entries), sum(e.bytes for e in entries)
    before = f", {reused:,} shards from before" if reused else ""
    progress.finish(f"{documents:,} documents, {size / 1e6:,.1f} MB{before}")
    return Written(entries, licences, reused)


def _partitions(writing: Writing) -> int:
    return min(writing.shards, max(4 * cpus(), int(writing.size / PARTITION_BYTES)))


def _complete(writing: Writing) -> Iterator[tuple[str, tuple[ShardEntry, Counter[str]]]]:
    """Shards that are there, tar and index, with their entries and samples by licence."""
    import ray.data

    filesystem, path = open_fs(writing.url)
    with explained(writing.url):
        try:
            listed = {name.rpartition("/")[2] for name in filesystem.ls(path, detail=False)}
        except FileNotFoundError:
            return
    names = [name for name in map(_name, range(writing.shards)) if {name, index_url(name)} <= listed]
    if not names:
        return
    items = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
    for row in items.map(_Read(writing.url, Environment.of_driver())).iter_rows():
        if row["entry"]:
            entry = ShardEntry(**json.loads(row["entry"]))
            yield entry.name, (entry, Counter(json.loads(row["licences"])))


def _by_one_task(writing: Writing, done: frozenset[str]) -> Iterator[Mapping[str, str]]:
    """What `_shuffled` gives, by a single task."""
    import ray

    task = ray.remote(_whole).options(num_returns="streaming")
    for reference in task.remote(writing, done, Environment.of_driver()):
        row: Mapping[str, str] = ray.get(reference)
        yield row


def _whole(writing: Writing, done: frozenset[str], environment: Environment) -> Iterator[dict[str, str]]:
    join = _Join(writing.seed, writing.shards, done, writing.image_bytes, None, environment)
    batches = (pa.Table.from_pylist([_row(piece)]) for piece in writing.pieces)
    rows = pa.concat_tables([SHUFFLED.empty_table(), *(t for batch in batches for t in join(batch))])
    write_one = _Write(writing.url, environment)
    for shard in sorted(rows["shard"].unique().to_pylist()):
        (told,) = write_one(rows.filter(pc.equal(rows["shard"], shard))).to_pylist()
        yield told


def _shuffled(writing: Writing, done: frozenset[str], partitions: int) -> Iterator[Mapping[str, str]]:
    """Entry, and samples by licence, of each shard that is not `done`, as it is written."""
    import ray.data

    environment = Environment.of_driver()
    context = ray.data.DataContext.get_current()
    usual, context.shuffle_strategy = context.shuffle_strategy, ray.data.context.ShuffleStrategy.SHUFFLE_V2
    try:
        with tallied("shard", writing.documents, "documents brought together") as tally:
            rows = ray.data.from_items(
                [_row(piece) for piece in writing.pieces], override_num_blocks=len(writing.pieces)
            )
            joined = rows.map_batches(
                _Join(writing.seed, writing.shards, done, writing.image_bytes, tally, environment),
                batch_size=1,
                batch_format="pyarrow",
            )
            grouped = joined.groupby("shard", num_partitions=partitions)
            written = grouped.map_groups(_Write(writing.url, environment).__call__, batch_format="pyarrow")
            yield from written.iter_rows()
    finally:
        context.shuffle_strategy = usual


def _row(piece: Piece) -> dict[str, Any]:
    taken = np.packbits(piece.taken).tobytes()
    stored = {"latents": json.dumps(piece.latents), "features": json.dumps(piece.features)}
    return {"url": piece.url, "taken": taken, "rows": len(piece.taken), **stored}


@dataclass(frozen=True)
class _Join:
    """Rows of a part of documents with their arrays, and with the shard and place they belong to."""

    seed: int
    shards: int
    done: frozenset[str]
    """Shards whose documents are left out."""
    image_bytes: float
    tally: Tally | None
    environment: Environment

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        self.environment.apply()
        (piece,) = batch.to_pylist()
        taken = np.unpackbits(np.frombuffer(piece["taken"], np.uint8), count=piece["rows"]).astype(bool)
        documents = read_part(piece["url"]).filter(pa.array(taken))
        orders = [order_of(self.seed, doc_id) for doc_id in documents["doc_id"].to_pylist()]
        wanted = [i for i, order in enumerate(orders) if _name(self._shard(order)) not in self.done]
        stored = {kind: Arrays(json.loads(piece[kind])) for kind in ("latents", "features")}
        for places in self._slices(documents["images"].to_pylist(), wanted):
            rows = documents.take(places).to_pylist()
            images = [sha256 for row in rows for sha256 in row["images"]]
            arrays = {kind: held.of(images) for kind, held in stored.items()}
            made = [self._row(row, orders[i], arrays) for i, row in zip(places, rows, strict=True)]
            yield pa.Table.from_pylist(made, SHUFFLED)
            if self.tally is not None:
                self.tally.add(len(made))

    def _shard(self, order: int) -> int:
        return order * self.shards >> 64

    def _slices(self, images: Sequence[Sequence[str]], wanted: Sequence[int]) -> Iterator[list[int]]:
        """The wanted rows, in order, in slices that are small enough to be held with their arrays."""
        held: list[int] = []
        size = 0.0
        for row in wanted:
            held.append(row)
            size += len(images[row]) * self.image_bytes
            if len(held) == ROWS or size >= ARRAY_BYTES:
                yield held
                held, size = [], 0.0
        if held:
            yield held

    def _row(
        self, row: Mapping[str, Any], order: int, arrays: Mapping[str, Mapping[str, NDArray[np.float16]]]
    ) -> dict[str, Any]:
        made: dict[str, Any] = {"shard": self._shard(order), "order": order}
        made |= {key: row[key] for key in ("document", "text_bytes")}
        for kind, found in arrays.items():
            own = [found[sha256] for sha256 in row["images"] if found]
            made |= {
                kind: [array.tobytes() for array in own],
                f"{kind}_shapes": [array.shape for array in own],
            }
        return made


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
        name = _name(rows["shard"][0].as_py())
        index = shard.index.to_bytes()
        put_atomic(join(self.url, name), shard.data)
        put_atomic(join(self.url, index_url(name)), index)
        told = _told(name, samples, shard.data, index)
        return pa.table({key: [value] for key, value in told.items()})


@dataclass(frozen=True)
class _Read:
    """The entry of a shard that lies there already; empty where index and tar do not belong together."""

    url: str
    environment: Environment

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        self.environment.apply()
        url = join(self.url, row["name"])
        data, index = read_bytes(url), read_bytes(index_url(url))
        try:
            known = ShardIndex.from_bytes(index)
            if known != ShardIndex.of_tar(data):
                return {"entry": "", "licences": ""}
            return _told(row["name"], list(ShardReader(data, known)), data, index)
        except ShardError:
            return {"entry": "", "licences": ""}


def _name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def _told(name: str, samples: Sequence[Sample], data: bytes, index: bytes) -> dict[str, str]:
    entry = ShardEntry(
        name=name,
        samples=len(samples),
        images=sum(len(s.latents) for s in samples),
        text_bytes=sum(len(text.text.encode()) for s in samples for text in s.document.texts),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    licences = Counter(s.document.licence for s in samples)
    return {"entry": json.dumps(asdict(entry)), "licences": json.dumps(licences)}


def _sample(row: Mapping[str, Any]) -> Sample:
    arrays = [
        tuple(
            np.frombuffer(data, "<f2").reshape(shape)
            for data, shape in zip(row[kind], row[f"{kind}_shapes"], strict=True)
        )
        for kind in ("latents", "features")
    ]
    return Sample(Document.from_json(json.loads(row["document"])), *arrays)
