"""Lists of a manifest as columns: a million entries open in a second and take the room of their digests."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

T = TypeVar("T")
ROWS_AT_ONCE = 4096


class TableError(ValueError):
    """A list that is not what it should be; the message says which column."""


@dataclass(frozen=True, slots=True)
class ListFile:
    """A list's file beside the manifest: how many rows, and the SHA-256 of its bytes."""

    rows: int
    sha256: str

    def file_name(self, field: str) -> str:
        """Name of the file of the list `field`. Another content has another name, so that a manifest which is
        replaced refers to its own lists at any moment."""
        return f"{field}-{self.sha256[:16]}.parquet"


class Table(Sequence[T], Generic[T]):
    """Entries of the dataclass `kind` in order, held as columns; an entry is made when it is asked for.

    Fields are strings or integers; one named `sha256` or ending in `_sha256` is a digest in hex, held as 32 bytes.
    `load` gives the columns, or Parquet of them, the first time that they are needed; of Parquet what is asked for is
    read, and no more.
    """

    def __init__(self, kind: type[T], rows: int, load: Callable[[], pa.Table | Stored]) -> None:
        self._kind, self._rows, self._load = kind, rows, load
        self._held: pa.Table | Stored | None = None

    @classmethod
    def of(cls, kind: type[T], entries: Iterable[T]) -> Table[T]:
        """A table of entries; a table of the same kind is given back."""
        if isinstance(entries, Table):
            return entries
        import pyarrow as pa

        columns: list[list[Any]] = [[] for _ in fields(kind)]  # type: ignore[arg-type]
        for entry in entries:
            for column, value in zip(columns, astuple(entry), strict=True):  # type: ignore[call-overload]
                column.append(value)
        for column, field in zip(columns, schema_of(kind), strict=True):
            if _is_digest(field.name):
                column[:] = [bytes.fromhex(value) for value in column]
        arrow = pa.table(columns, schema=schema_of(kind))
        return cls(kind, arrow.num_rows, lambda: arrow)

    @classmethod
    def of_bytes(cls, kind: type[T], data: bytes) -> Table[T]:
        """Reads what `to_bytes` wrote.

        Raises:
            TableError: no Parquet, or other columns.
        """
        stored = Stored(data)
        if not stored.schema.equals(schema_of(kind)):
            raise TableError(f"columns {stored.schema.names}, not {schema_of(kind).names}")
        return cls(kind, stored.rows, lambda: stored)

    def columns_of(self) -> pa.Table | Stored:
        """What the entries are made of, as it is held."""
        if self._held is None:
            self._held = self._load()
        return self._held

    def to_bytes(self) -> bytes:
        """As Parquet: equal tables give equal bytes (of one version of Arrow)."""
        import pyarrow.parquet as pq

        stream = io.BytesIO()
        pq.write_table(self._table, stream, compression="zstd", row_group_size=1 << 17)
        return stream.getvalue()

    def column(self, name: str) -> NDArray[Any]:
        """All values of an integer field, [rows] int64."""
        held = self.columns_of()
        found: NDArray[Any] = (held.column(name) if isinstance(held, Stored) else held[name]).to_numpy()
        return np.asarray(found, np.int64)

    @property
    def arrow(self) -> pa.Table:
        """The columns, digests as 32 bytes."""
        return self._table

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[T, ...]: ...
    def __getitem__(self, place: int | slice) -> T | tuple[T, ...]:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(self._rows)))
        if not -self._rows <= place < self._rows:
            raise IndexError(f"entry {place} of {self._rows}")
        held, place = self.columns_of(), place % self._rows
        return next(self._entries(held.row(place) if isinstance(held, Stored) else held.slice(place, 1)))

    def __iter__(self) -> Iterator[T]:
        for start in range(0, self._rows, ROWS_AT_ONCE):
            yield from self._entries(self._table.slice(start, ROWS_AT_ONCE))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._kind is other._kind and self._table.equals(other._table)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as Parquet."""
        held = self.columns_of()
        return Table.of_bytes, (self._kind, held.data if isinstance(held, Stored) else self.to_bytes())

    def __repr__(self) -> str:
        return f"Table({self._kind.__name__}, {self._rows} rows)"

    @property
    def _table(self) -> pa.Table:
        held = self.columns_of()
        if isinstance(held, Stored):
            held = self._held = held.whole()
        return held

    def _entries(self, rows: pa.Table) -> Iterator[T]:
        columns = [
            [value.hex() for value in column.to_pylist()] if _is_digest(name) else column.to_pylist()
            for name, column in zip(rows.schema.names, rows.columns, strict=True)
        ]
        return (self._kind(*values) for values in zip(*columns, strict=True))


class Stored:
    """A Parquet file in memory, of which columns and rows are read when they are asked for. Thread-safe.

    Raises:
        TableError: it is none; also later, where it is damaged further on.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._metadata: Any = None
        with self._file() as file:
            self._metadata, self.schema, self.rows = file.metadata, file.schema_arrow, file.metadata.num_rows
        counts = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        self._ends = np.cumsum(counts) if counts else np.zeros(0, np.int64)
        self._groups: dict[int, pa.Table] = {}

    def column(self, name: str) -> pa.ChunkedArray:
        """One column."""
        with self._file() as file:
            return file.read(columns=[name])[name]

    def row(self, place: int) -> pa.Table:
        """One row, with which its neighbours are read and kept."""
        group = int(np.searchsorted(self._ends, place, side="right"))
        if group not in self._groups:
            with self._file() as file:
                self._groups[group] = file.read_row_group(group)
        held = self._groups[group]
        return held.slice(place - int(self._ends[group]) + held.num_rows, 1)

    def whole(self) -> pa.Table:
        """All of it."""
        with self._file() as file:
            return file.read()

    @contextmanager
    def _file(self) -> Iterator[pq.ParquetFile]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            yield pq.ParquetFile(pa.BufferReader(self.data), metadata=self._metadata)
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"no Parquet: {error}") from None


def schema_of(kind: type) -> pa.Schema:
    """Arrow's schema of the dataclass `kind`."""
    import pyarrow as pa

    plain = {"str": pa.string(), "int": pa.int64()}
    return pa.schema(
        [(f.name, pa.binary(32) if _is_digest(f.name) else plain[str(f.type)]) for f in fields(kind)]
    )


def listed(data: bytes, rows: int) -> ListFile:
    """How a manifest names a list's bytes."""
    return ListFile(rows, hashlib.sha256(data).hexdigest())


def _is_digest(name: str) -> bool:
    return name == "sha256" or name.endswith("_sha256")
