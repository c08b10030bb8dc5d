"""Random access to the samples of a shard: over bytes, a memory map of a local file, or ranges of any URL."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.shard import Sample, read_sample


def index_url(shard: str) -> str:
    """Where the index of the shard at URL or path `shard` lies."""
    return shard.removesuffix(".tar") + ".index.json"


class ShardReader:
    """The samples of a shard by number. One sample is one read; every member's digest is checked.

    `source` is the tar's bytes, a local path, or an fsspec URL. Without `index` the one beside the tar is read,
    and where there is none it is rebuilt from the tar. Reading is thread-safe. Close it, or use it in a `with`.

    Raises:
        FileNotFoundError: no shard at `source`.
        ShardError: the index is not of this shard (the size differs), or the bytes are not as it says.
    """

    def __init__(self, source: bytes | str | Path, index: ShardIndex | None = None) -> None:
        self._name = "shard" if isinstance(source, bytes) else str(source)
        self._bytes: _Bytes = _open(source)
        self.index = index or self._find_index(source)
        if self.index.size != len(self._bytes):
            sizes = f"{len(self._bytes)} bytes, its index is of {self.index.size}"
            self.close()
            raise ShardError(f"{self._name}: {sizes}; fetch the shard or its index anew")

    def __len__(self) -> int:
        """Samples in the shard."""
        return len(self.index.samples)

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, counted from 0 in the order they were written."""
        entry = self.index.samples[number]
        span = self._bytes.read(entry.start, entry.stop)
        if len(span) != entry.stop - entry.start:
            raise ShardError(f"{self._name}: ends within sample {entry.key}; fetch the shard anew")
        return read_sample(entry, span)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[number] for number in range(len(self)))

    def read_tar(self) -> memoryview:
        """The whole tar."""
        return self._bytes.read(0, None)

    def close(self) -> None:
        """Let go of the file; arrays already read stay valid."""
        self._bytes.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_index(self, source: bytes | str | Path) -> ShardIndex:
        if not isinstance(source, bytes):
            try:
                return ShardIndex.from_bytes(_open(index_url(str(source))).read(0, None).tobytes())
            except FileNotFoundError:
                pass
        return ShardIndex.of_tar(self._bytes.read(0, None))


class _Bytes(Protocol):
    """A run of bytes that can be read from any place."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int | None) -> memoryview: ...
    def close(self) -> None: ...


class _Held:
    """Bytes in memory, or mapped from a file (an empty file cannot be mapped)."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def read(self, start: int, stop: int | None) -> memoryview:
        return memoryview(self._data[start:stop])

    def close(self) -> None:
        if isinstance(self._data, mmap.mmap):
            self._data.close()


class _Remote:
    """An object read by ranges."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self._filesystem, self._path = url_to_fs(url)
        self._size = int(self._filesystem.size(self._path))

    def __len__(self) -> int:
        return self._size

    def read(self, start: int, stop: int | None) -> memoryview:
        return memoryview(self._filesystem.cat_file(self._path, start=start, end=stop))

    def close(self) -> None:
        """Nothing is held between reads."""


def _open(source: bytes | str | Path) -> _Bytes:
    if isinstance(source, bytes):
        return _Held(source)
    text = str(source).removeprefix("file://")
    if "://" in text:
        return _Remote(text)
    with Path(text).open("rb") as file:
        empty = Path(text).stat().st_size == 0
        return _Held(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
