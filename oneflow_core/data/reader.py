"""Random access to the samples of a shard: over bytes, a memory map of a local file, or ranges of any URL."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.remote import fetch, retried
from oneflow_core.data.shard import Sample, read_sample


def index_url(shard: str) -> str:
    """Where the index of the shard at URL or path `shard` lies."""
    return shard.removesuffix(".tar") + ".index.arrow"


class ShardReader:
    """The samples of a shard by number. One sample is one read; every member's digest is checked.

    `source` is the tar's bytes, a local path, or an fsspec URL; errors call it `name`. Without `index` the one beside
    the tar is read, and where there is none it is rebuilt from the tar. Reading is thread-safe. Close it, or use it in
    a `with`. Arrays of local shards are views of the mapped file, read-only; they stay valid when the reader is closed.

    Raises:
        FileNotFoundError: no shard at `source`.
        ShardError: the index is not of this shard (the size differs), or the bytes are not as it says.
    """

    def __init__(
        self, source: bytes | str | Path, index: ShardIndex | None = None, name: str | None = None
    ) -> None:
        self._name = name or ("shard" if isinstance(source, bytes) else str(source))
        self._bytes: _Bytes = _open(source, index.size if index else None)
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
        try:
            return read_sample(entry, span)
        except ShardError as error:
            mend = "fetch the shard anew, or see what oneflow corpus verify --deep says of it"
            raise ShardError(f"{self._name}: {error}; {mend}") from None

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
    """Bytes in memory, or mapped from a file (an empty file cannot be mapped); reads are views, not copies."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._view = memoryview(data)

    def __len__(self) -> int:
        return len(self._view)

    def read(self, start: int, stop: int | None) -> memoryview:
        return self._view[start:stop]

    def close(self) -> None:
        """The map goes with the last view of it: that of an array, perhaps."""
        self._view = memoryview(b"")


class _Remote:
    """An object read by ranges."""

    def __init__(self, url: str, size: int | None) -> None:
        from fsspec.core import url_to_fs

        self._url = url
        filesystem, path = url_to_fs(url)
        self._size = size if size is not None else int(retried(lambda: filesystem.size(path)))

    def __len__(self) -> int:
        return self._size

    def read(self, start: int, stop: int | None) -> memoryview:
        stop = self._size if stop is None else min(stop, self._size)
        return memoryview(fetch(self._url, start, stop, size=max(0, stop - start)))

    def close(self) -> None:
        """Nothing is held between reads."""


def _open(source: bytes | str | Path, size: int | None = None) -> _Bytes:
    """`size` is that of a remote object, where it is known."""
    if isinstance(source, bytes):
        return _Held(source)
    text = str(source).removeprefix("file://")
    if "://" in text:
        return _Remote(text, size)
    with Path(text).open("rb") as file:
        empty = Path(text).stat().st_size == 0
        return _Held(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
