"""Fetched images as they were when they were first read: a part of `images/<source>/`, by digests of their URLs."""

import hashlib
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.corpus.parts import put_file
from workflows.storage import exists, explained, open_fs

Answer = tuple[bytes | None, str]
"""Bytes, or None and the reason."""
SCHEMA = pa.schema([("key", pa.binary()), ("data", pa.large_binary()), ("reason", pa.string())])
GROUP_BYTES = 16 << 20


class Kept:
    """What was fetched for one unit. Where the part is there, it answers and nothing is fetched; else it is written."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._reader: pq.ParquetFile | None = None
        self._places: dict[bytes, tuple[int, int]] | None = None
        self._group: tuple[int, Any] = (-1, None)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._seen: dict[bytes, tuple[bytes, str]] = {}
        self._held = 0

    def first(self, key: bytes, fetch: Callable[[], Answer]) -> Answer:
        """What `key` gave the first time that it was asked for, in this run or an earlier one."""
        with self._lock:
            if self._places is None:
                self._places = self._load()
            if self._reader is not None:
                return self._read(key)
            if key in self._seen and not self._seen[key][0]:
                return None, self._seen[key][1]
        data, reason = fetch()
        digest = hashlib.sha256(data).digest() if data is not None else b""
        with self._lock:
            if key not in self._seen:
                self._seen[key] = (digest, reason)
                self._put(key, data, reason)
            elif self._seen[key][0] != digest:
                return None, "fetch gave another"
        return data, reason

    def commit(self) -> None:
        """Store the part, if anything was fetched; it is there whole or not at all."""
        if self._writer is None and not self._rows:
            return
        self._flush()
        assert self._writer is not None and self._folder is not None
        self._writer.close()
        put_file(self._url, Path(self._folder.name, "part"))

    def close(self) -> None:
        """Drop what was not committed."""
        if self._reader is not None:
            self._reader.close(force=True)
        if self._writer is not None:
            self._writer.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _load(self) -> dict[bytes, tuple[int, int]]:
        if not exists(self._url):
            return {}
        filesystem, path = open_fs(self._url)
        with explained(self._url):
            self._reader = pq.ParquetFile(filesystem.open(path, "rb"))
            groups = range(self._reader.num_row_groups)
            columns = [
                self._reader.read_row_group(g, columns=["key"], use_threads=False)["key"] for g in groups
            ]
        return {key: (g, i) for g, column in enumerate(columns) for i, key in enumerate(column.to_pylist())}

    def _read(self, key: bytes) -> Answer:
        assert self._reader is not None and self._places is not None
        if key not in self._places:
            return None, "image not kept"
        group, row = self._places[key]
        if self._group[0] != group:
            with explained(self._url):
                self._group = (group, self._reader.read_row_group(group, use_threads=False))
        held = self._group[1]
        return held["data"][row].as_py(), held["reason"][row].as_py()

    def _put(self, key: bytes, data: bytes | None, reason: str) -> None:
        self._held += len(data or b"")
        self._rows.append({"key": key, "data": data, "reason": reason})
        if self._held > GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._folder = tempfile.TemporaryDirectory(prefix="oneflow-images-")
            self._writer = pq.ParquetWriter(Path(self._folder.name, "part"), SCHEMA, compression="none")
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows, self._held = [], 0
