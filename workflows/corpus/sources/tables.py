"""Rows of Parquet and Arrow files, a small batch at a time."""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.corpus.sources.files import Files
from workflows.corpus.sources.packed import Broken
from workflows.corpus.sources.protocol import Refused, head
from workflows.errors import OneFlowError

BATCH_ROWS = 64
FREE_BYTES = 1 << 30
"""What a row group may unpack to however small it is."""
RATIO = 100


def parquet_rows(files: Files, unwanted: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """`row-N` and the row, for each row of the unit's row groups; a group that is damaged is one refusal.

    Only what a reader may look at is read: no nested numbers (embeddings), nothing of `unwanted`.

    Raises:
        pyarrow.ArrowException, OSError: a file without a good footer.
    """
    with files.seekable() as stream:
        # Nobody else reads the magic, and the digest goes on from there.
        stream.read(4)
        yield from _rows(files, stream, unwanted)


def _rows(files: Files, stream: BinaryIO, unwanted: Sequence[str]) -> Iterator[tuple[str, Any]]:
    with pq.ParquetFile(stream, pre_buffer=False, buffer_size=4 << 20) as table:
        columns = [f.name for f in table.schema_arrow if f.name not in unwanted and _wanted(f.type)]
        first, last = files.groups or (0, table.num_row_groups)
        before = [table.metadata.row_group(g).num_rows for g in range(last)]
        number = sum(before[:first])
        for group in range(first, last):
            yield from _group(table, group, columns, number)
            number += before[group]


def arrow_rows(files: Files) -> Iterator[tuple[str, Any]]:
    """`row-N` and the row of an Arrow stream, as `datasets` writes them, or an Arrow file.

    Raises:
        pyarrow.ArrowException, OSError: damage, after the batches before it.
    """
    number = 0
    for batch in _batches(files):
        wanted = batch.select([f.name for f in batch.schema if _wanted(f.type)])
        for start in range(0, wanted.num_rows, BATCH_ROWS):
            for row in _values(wanted.slice(start, BATCH_ROWS)):
                yield f"row-{number}", row
                number += 1


def _batches(files: Files) -> Iterator[pa.RecordBatch]:
    with files.plain() as stream:
        magic = stream.peek(6)[:6]  # type: ignore[attr-defined]
        if magic != b"ARROW1":
            yield from pa.ipc.open_stream(pa.PythonFile(stream, "r"))
            return
    with files.seekable() as stream:
        table = pa.ipc.open_file(pa.PythonFile(stream, "r"))
        for number in range(table.num_record_batches):
            yield table.get_batch(number)


def _group(table: pq.ParquetFile, group: int, columns: list[str], number: int) -> Iterator[tuple[str, Any]]:
    about = table.metadata.row_group(group)
    read = 0
    try:
        packed = sum(about.column(c).total_compressed_size for c in range(about.num_columns))
        if about.total_byte_size > max(FREE_BYTES, RATIO * packed):
            raise Broken("unpacks to too much")
        for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            for row in _values(batch):
                yield f"row-{number + read}", row
                read += 1
    except OneFlowError:
        raise
    except Exception as error:  # noqa: BLE001 what damaged pages raise is anybody's guess
        reason = str(error) if isinstance(error, Broken) else "row group broken"
        yield "", Refused(f"row-{number + read}", reason, head(f"{type(error).__name__}: {error}"))


def _values(batch: pa.RecordBatch) -> list[Any]:
    """The rows of a batch; where a value cannot be told (text that is no UTF-8), a Refused in place of its row."""
    try:
        return list(batch.to_pylist())
    except Exception as error:  # noqa: BLE001 found row by row
        if batch.num_rows == 1:
            return [Refused("", "row unreadable", head(f"{type(error).__name__}: {error}"))]
    return [row for i in range(batch.num_rows) for row in _values(batch.slice(i, 1))]


def _wanted(kind: pa.DataType) -> bool:
    """Whether columns of this type can be texts, images or scalars: not lists of numbers."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
        if not (pa.types.is_nested(kind) or _is_data(kind)):
            return False
    return not pa.types.is_map(kind)


def _is_data(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in checks) or pa.types.is_dictionary(kind) or pa.types.is_null(kind)
