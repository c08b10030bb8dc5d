"""The offset index of a shard: for every sample its members' places, sizes and digests in the tar.

It is stored as an Arrow IPC file with one row a sample, so that pandas, DuckDB and others read it too, and held as two
arrays: a shard of ten thousand samples opens in about a millisecond.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

INDEX_SCHEMA = 2
DIGEST_BYTES = 16
ROW = np.dtype([("name", "<u2"), ("offset", "<i8"), ("size", "<i8"), ("digest", f"V{DIGEST_BYTES}")])
"""A member as it is held; `name` is the place of its name among the index's names."""


class ShardError(ValueError):
    """A shard or sample that does not follow the format; the message names the sample or member."""


class Member(NamedTuple):
    """One file of a sample: `offset` and `size` of its content in the tar, in bytes, header not counted."""

    name: str
    """What follows the key and its dot: "json", "0.latent.npy", ..."""
    offset: int
    size: int
    digest: bytes
    """What `member_digest` says of its content."""


_member = Member._make


class SampleEntry(NamedTuple):
    """A sample's key and members, which lie side by side in the tar."""

    key: str
    members: tuple[Member, ...]

    @property
    def start(self) -> int:
        """First byte of the first member's content."""
        return self.members[0].offset

    @property
    def stop(self) -> int:
        """One past the last byte of the last member's content."""
        return self.members[-1].offset + self.members[-1].size


class Entries(Sequence[SampleEntry]):
    """The entries of a shard, held as columns; one is made when it is asked for."""

    def __init__(
        self,
        keys: bytes,
        key_ends: NDArray[np.int64],
        ends: NDArray[np.int64],
        names: Sequence[str],
        rows: Any,
    ) -> None:
        self._keys, self._key_ends, self._ends = keys, key_ends, ends
        self._names, self._rows = tuple(names), rows

    @classmethod
    def of(cls, entries: Iterable[SampleEntry]) -> Entries:
        """The same entries as columns."""
        entries = tuple(entries)
        names = {name: i for i, name in enumerate(sorted({m.name for e in entries for m in e.members}))}
        rows = [(names[m.name], m.offset, m.size, m.digest) for e in entries for m in e.members]
        keys = [entry.key.encode() for entry in entries]
        ends = np.cumsum([0, *(len(e.members) for e in entries)])
        return cls(b"".join(keys), np.cumsum([0, *map(len, keys)]), ends, list(names), np.array(rows, ROW))

    @property
    def names(self) -> tuple[str, ...]:
        """Names that members have, in order."""
        return self._names

    @property
    def rows(self) -> NDArray[Any]:
        """All members, [members] of `ROW`."""
        found: NDArray[Any] = self._rows
        return found

    @property
    def ends(self) -> NDArray[np.int64]:
        """Entry i has members ends[i] to ends[i + 1]."""
        return self._ends

    def key(self, number: int) -> str:
        """The key of an entry alone."""
        return self._keys[self._key_ends[number] : self._key_ends[number + 1]].decode()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> SampleEntry: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[SampleEntry, ...]: ...
    def __getitem__(self, number: int | slice) -> SampleEntry | tuple[SampleEntry, ...]:
        if isinstance(number, slice):
            return tuple(self[i] for i in range(*number.indices(len(self))))
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number %= len(self)
        rows, names = self._rows[self._ends[number] : self._ends[number + 1]].tolist(), self._names
        members = [_member((names[name], offset, size, digest)) for name, offset, size, digest in rows]
        return SampleEntry(self.key(number), tuple(members))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Entries)
            and (self._keys, self._names) == (other._keys, other._names)
            and np.array_equal(self._key_ends, other._key_ends)
            and np.array_equal(self._ends, other._ends)
            and np.array_equal(self._rows, other._rows)
        )

    __hash__ = None  # type: ignore[assignment]


class ShardIndex:
    """All `samples` of a shard, in order, and the `size` of the tar in bytes."""

    def __init__(self, samples: Iterable[SampleEntry], size: int) -> None:
        self.samples = samples if isinstance(samples, Entries) else Entries.of(samples)
        self.size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardIndex) and (self.size, self.samples) == (other.size, other.samples)

    __hash__ = None  # type: ignore[assignment]

    def to_bytes(self) -> bytes:
        """An Arrow IPC file, the same bytes for the same index (of one version of Arrow)."""
        import pyarrow as pa

        table = _table(self.samples).replace_schema_metadata(
            {"index": f"{INDEX_SCHEMA}", "bytes": f"{self.size}"}
        )
        stream = io.BytesIO()
        with pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """Reads what `to_bytes` wrote.

        Raises:
            ShardError: not such an index, or another schema version.
        """
        import pyarrow as pa

        if data[:1] == b"{":
            raise ShardError("index schema 1 is JSON from before; build the corpus again")
        try:
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
            table.validate(full=True)
            facts = {name.decode(): int(value) for name, value in (table.schema.metadata or {}).items()}
            if facts["index"] != INDEX_SCHEMA:
                raise ShardError(f"index schema {facts['index']} is not {INDEX_SCHEMA}; rebuild the index")
            return cls(_entries(table), facts["bytes"])
        except ShardError:
            raise
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise ShardError(f"not a shard index: {error!r:.200}") from None

    @classmethod
    def of_tar(cls, data: bytes | memoryview) -> ShardIndex:
        """The index of a shard whose tar is all that is left of it.

        Raises:
            ShardError: no tar, cut short, or with members that are no samples' files.
        """
        samples = tuple(SampleEntry(key, tuple(members)) for key, members in _groups(data))
        keys = {entry.key for entry in samples}
        if len(keys) != len(samples):
            raise ShardError("a key stands in two places of the tar; its samples must lie side by side")
        return cls(samples, len(data))


def member_digest(data: bytes | memoryview) -> bytes:
    """XXH3-128: what the index holds for a member's bytes. It finds damage; it is no proof against forgers."""
    import xxhash

    return xxhash.xxh3_128_digest(data)


def digest_of(data: bytes | memoryview) -> str:
    """BLAKE2b-128 in hex: names content for ever."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    name = pa.dictionary(pa.uint16(), pa.string())
    digest = pa.binary(DIGEST_BYTES)
    member = [("name", name), ("offset", pa.int64()), ("size", pa.int64()), ("digest", digest)]
    return pa.schema([("key", pa.string()), ("members", pa.list_(pa.struct(member)))])


def _table(entries: Entries) -> pa.Table:
    import pyarrow as pa

    rows, schema = entries.rows, _schema()
    names = pa.DictionaryArray.from_arrays(pa.array(rows["name"]), pa.array(entries.names, pa.string()))
    digests = pa.py_buffer(np.ascontiguousarray(rows["digest"]).tobytes())
    columns = [
        names,
        pa.array(np.ascontiguousarray(rows["offset"])),
        pa.array(np.ascontiguousarray(rows["size"])),
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), len(rows), [None, digests]),
    ]
    kind = schema.field("members").type.value_type
    members = pa.StructArray.from_arrays(columns, fields=list(kind))
    lists = pa.ListArray.from_arrays(pa.array(entries.ends.astype(np.int32)), members)
    keys = pa.array([entries.key(i) for i in range(len(entries))], pa.string())
    return pa.table([keys, lists], schema=schema)


def _entries(table: pa.Table) -> Entries:
    """The entries of a table that has been validated.

    Raises:
        ValueError: other columns, or values that cannot be.
    """
    if not table.schema.remove_metadata().equals(_schema()):
        raise ValueError(f"columns {table.schema.names}")
    keys, members = (column.combine_chunks() for column in table.columns)
    if table.num_rows == 0:
        return Entries.of(())
    values = members.values
    if (
        keys.null_count
        or members.null_count
        or values.null_count
        or any(f.null_count for f in values.flatten())
    ):
        raise ValueError("empty cells")
    name, offset, size, digest = (values.field(i) for i in range(4))
    rows = np.empty(len(values), ROW)
    rows["name"], rows["offset"], rows["size"] = name.indices.to_numpy(), offset.to_numpy(), size.to_numpy()
    rows["digest"] = np.frombuffer(digest.buffers()[1], f"V{DIGEST_BYTES}", len(values))
    ends = members.offsets.to_numpy().astype(np.int64)
    _check(rows, ends)
    lengths = np.frombuffer(keys.buffers()[1], "<i4", len(keys) + 1).astype(np.int64)
    text = keys.buffers()[2]
    return Entries(text.to_pybytes() if text else b"", lengths, ends, name.dictionary.to_pylist(), rows)


def _check(rows: NDArray[Any], ends: NDArray[np.int64]) -> None:
    offsets, sizes = rows["offset"], rows["size"]
    if ends[0] != 0 or ends[-1] != len(rows) or (np.diff(ends) < 1).any():
        raise ValueError("samples without members")
    if (sizes < 0).any() or (offsets < 0).any() or (offsets[1:] < offsets[:-1] + sizes[:-1]).any():
        raise ValueError("members that overlap")


def _groups(data: bytes | memoryview) -> Iterator[tuple[str, list[Member]]]:
    """Keys with their members, each key's run in the tar together."""
    current: tuple[str, list[Member]] | None = None
    for info in _infos(data):
        key, dot, name = info.name.partition(".")
        if not info.isreg() or not dot or "/" in key:
            raise ShardError(f"member {info.name!r} is no file named <key>.<what>")
        content = data[info.offset_data : info.offset_data + info.size]
        if len(content) != info.size:
            raise ShardError(f"the tar ends within {info.name!r}")
        if current is None or current[0] != key:
            if current is not None:
                yield current
            current = (key, [])
        current[1].append(Member(name, info.offset_data, info.size, member_digest(content)))
    if current is not None:
        yield current


def _infos(data: bytes | memoryview) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            return tar.getmembers()
    except tarfile.TarError as error:
        raise ShardError(f"not a whole tar: {error}") from None
