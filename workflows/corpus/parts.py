"""Parts: Parquet files under a corpus root, each written whole in one put, with facts about it in its footer."""

import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from workflows.storage import explained, join, open_fs, put_atomic, read_bytes

FACTS = b"oneflow"
READERS_AT_ONCE = 8
GROUP_ROWS = 8192
GROUP_BYTES = 16 << 20
"""A part that is written row by row is cut into groups of rows at whichever comes first: what is held in memory."""
ONE_PUT_BYTES = 64 << 20
"""A larger part is not read into memory to be put: it goes up in pieces, and appears when the last is there."""


class PartWriter:
    """A part that is written row by row, over a file on the local disk; the same rows and facts give the same bytes.

    Nothing is at a URL before `put`. Use it in `with`, which removes the file.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._rows, self._size = schema, list[Mapping[str, Any]](), 0
        self._folder = tempfile.TemporaryDirectory(prefix="oneflow-part-")
        self._path = Path(self._folder.name, "part.parquet")
        self._writer = pq.ParquetWriter(self._path, schema, compression="zstd", compression_level=1)
        self.count = 0
        """Rows so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._folder.cleanup()

    def add(self, row: Mapping[str, Any], size: int) -> None:
        """One more row, which takes about `size` bytes of memory."""
        self._rows.append(row)
        self.count, self._size = self.count + 1, self._size + size
        if len(self._rows) >= GROUP_ROWS or self._size >= GROUP_BYTES:
            self._flush()

    def put(self, url: str, facts: Mapping[str, Any]) -> None:
        """Close the part with `facts` in its footer, and put it at `url`, whole."""
        self._flush()
        self._writer.add_key_value_metadata({FACTS: json.dumps(facts, sort_keys=True).encode()})
        self._writer.close()
        put_file(url, self._path)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._size = [], 0


def write_part(url: str, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write `table` to `url`; the same table and facts give the same bytes."""
    stream = io.BytesIO()
    held = table.replace_schema_metadata({FACTS: json.dumps(facts, sort_keys=True)})
    pq.write_table(held, stream, compression="zstd", compression_level=1)
    put_atomic(url, stream.getvalue())


def read_part(url: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The part at `url`, or some of its columns."""
    if columns is None:
        return pq.read_table(io.BytesIO(read_bytes(url)))
    filesystem, path = open_fs(url)
    with explained(url), filesystem.open(path, "rb") as stream:
        return pq.read_table(stream, columns=list(columns))


def read_facts(urls: Sequence[str]) -> list[dict[str, Any]]:
    """The facts in the footers of the parts, in their order."""
    with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
        return list(pool.map(_facts, urls))


def list_parts(*where: str) -> dict[str, str]:
    """Name (without suffix) -> URL of the parts in the directory `where`; empty when there is none.

    Raises:
        OneFlowError: the bucket does not exist, so that nothing can ever be written there.
    """
    folder = join(*where)
    filesystem, path = open_fs(folder)
    with explained(folder):
        try:
            names = [entry.rpartition("/")[2] for entry in filesystem.ls(path, detail=False)]
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise
            return {}
    return {n.removesuffix(".parquet"): join(folder, n) for n in sorted(names) if _is_part(n)}


def facts_of(table: pa.Table) -> dict[str, Any]:
    """The facts of a part that was read whole."""
    facts: dict[str, Any] = json.loads(table.schema.metadata[FACTS])
    return facts


def _facts(url: str) -> dict[str, Any]:
    filesystem, path = open_fs(url)
    with explained(url), filesystem.open(path, "rb") as stream:
        facts: dict[str, Any] = json.loads(pq.read_metadata(stream).metadata[FACTS])
        return facts


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def put_file(url: str, path: Path) -> None:
    """The file at `path` to `url`, in one put, by rename or by a multipart upload: there whole, or not at all."""
    if path.stat().st_size <= ONE_PUT_BYTES:
        put_atomic(url, path.read_bytes())
        return
    filesystem, target = open_fs(url)
    with explained(url):
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.put_file(str(path), target)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(target).with_name(f".{Path(target).name}.{uuid.uuid4().hex}")
        try:
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
