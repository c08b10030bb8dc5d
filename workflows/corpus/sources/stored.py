"""Stored files as streams: any fsspec URL, each read tried again, digested on the way."""

import hashlib
import io
import os
import random
import stat
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from workflows.errors import OneFlowError
from workflows.storage import open_fs
from workflows.storage_errors import explain

BLOCK = 1 << 20
"""Bytes of one request, at least."""
RETRIES = 5
WAIT = 0.25
"""Seconds before the second try; doubled for each further one, less a random part."""
ROOM = 64 << 20
"""Bytes that a digest holds of what was read too early, before they are dropped and read again."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it: `name` below its unit's directory; `etag` changes when its bytes do."""

    name: str
    url: str = field(repr=False)
    size: int
    """Bytes; 0 also where the store does not say."""
    etag: str


class Digest:
    """SHA-256 of the bytes [start, end) of a file, which may come in any order."""

    def __init__(self, start: int = 0, end: int | None = None) -> None:
        self.at, self._end = start, end
        self._sha256 = hashlib.sha256()
        self._early: dict[int, bytes] = {}
        self._held = 0
        self._lock = threading.Lock()

    @property
    def done(self) -> bool:
        """Whether nothing is wanting; never, where the end is not known."""
        return self._end is not None and self.at >= self._end

    @property
    def wanting(self) -> int | None:
        """Bytes from `at` on that are wanting before what is held; None where that is not known."""
        end = min(self._early, default=self._end)
        return None if end is None else max(0, end - self.at)

    def feed(self, at: int, data: bytes) -> None:
        """Take `data`, read at byte `at`."""
        with self._lock:
            self._feed(at, data)

    def _feed(self, at: int, data: bytes) -> None:
        if self._end is not None:
            data = data[: max(0, self._end - at)]
        if at <= self.at:
            self._take(at, data)
            for early in sorted(self._early):
                if early > self.at:
                    break
                held = self._early.pop(early)
                self._held -= len(held)
                self._take(early, held)
        elif self._held + len(data) <= ROOM and len(data) > len(self._early.get(at, b"")):
            self._held += len(data) - len(self._early.get(at, b""))
            self._early[at] = data

    def _take(self, at: int, data: bytes) -> None:
        fresh = data[self.at - at :]
        self._sha256.update(fresh)
        self.at += len(fresh)

    def hexdigest(self) -> str:
        """Of what was fed so far."""
        return self._sha256.hexdigest()


class StoredStream(io.RawIOBase):
    """Reads a stored file. What fails is tried again, then told as a OneFlowError: never as an end of the file."""

    def __init__(self, file: StoredFile, digests: Sequence[Digest] = (), *, streamed: bool = True) -> None:
        self._file, self._digests = file, digests
        self._at = self._inner_at = 0
        self._inner: Any = None
        self._filesystem, self._path = open_fs(file.url)
        self._ahead = streamed
        self._streams = streamed and "http" in self._filesystem.protocol

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always; backwards on a web server that gives no ranges means from the beginning."""
        return True

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is read before the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Up to as many bytes as `buffer` holds; 0 at the end of the file only."""
        data = self._read(len(buffer))
        for digest in self._digests:
            digest.feed(self._at, data)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close what is open underneath."""
        self._drop()
        super().close()

    def _read(self, count: int) -> bytes:
        if self._file.size and self._at >= self._file.size:
            return b""
        for attempt in range(RETRIES):
            try:
                data = self._attempt(count)
                if data or not self._file.size:
                    return data
                raise OSError(f"it ends at byte {self._at} of {self._file.size}: it is not what was listed")
            except Exception as error:
                self._drop()
                told = explain(self._file.url, error)
                lasting = isinstance(error, FileNotFoundError | PermissionError | ImportError)
                if lasting or attempt == RETRIES - 1 or isinstance(self._filesystem, LocalFileSystem):
                    raise _failure(self._file.url, told) from None
                time.sleep(WAIT * 2**attempt * (0.5 + random.random() / 2))
        raise AssertionError("unreachable")

    def _attempt(self, count: int) -> bytes:
        if self._inner is not None and self._streams and self._at < self._inner_at:
            self._drop()
        if self._inner is None:
            self._inner, self._inner_at = self._opened(), 0
        if self._streams:
            self._skip()
        else:
            self._inner.seek(self._at)
        data: bytes = self._inner.read(count)
        self._inner_at += len(data)
        return data

    def _skip(self) -> None:
        while self._inner_at < self._at:
            data = self._inner.read(min(self._at - self._inner_at, BLOCK))
            if not data:
                raise OSError(f"it ends at byte {self._inner_at}")
            self._inner_at += len(data)

    def _opened(self) -> Any:
        if isinstance(self._filesystem, LocalFileSystem):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError("it is no regular file")
            return os.fdopen(descriptor, "rb", buffering=0)
        if self._streams:
            return self._filesystem.open(self._path, "rb", block_size=0, size=self._file.size or 1)
        if not self._ahead:
            return self._filesystem.open(self._path, "rb", cache_type="none")
        return self._filesystem.open(self._path, "rb", block_size=4 * BLOCK)

    def _drop(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()


def _failure(url: str, told: Exception) -> OneFlowError:
    if isinstance(told, OneFlowError):
        return told
    return OneFlowError(url, f"reading failed: {type(told).__name__}: {told}", "try again")
