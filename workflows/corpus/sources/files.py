"""The files of a unit, for its reader: streamed, or copied where a format must jump, and digested as they are read."""

import hashlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from workflows.corpus.config import LimitsConfig
from workflows.corpus.sources.images import Images
from workflows.corpus.sources.packed import COMPRESSIONS, PIECE, unpacked
from workflows.corpus.sources.stored import BLOCK, Digest, StoredFile, StoredStream
from workflows.errors import OneFlowError
from workflows.storage import open_fs

SMALL = 1 << 12
"""Bytes that are read ahead where a reader jumps, and does its own reading ahead."""
Span = tuple[int, int]
"""A range of bytes of a file."""


class Files:
    """A unit's files by name. `main` is the one that is read, or the directory; `spans` are the bytes of it that
    belong to the unit, where that is not all of it."""

    def __init__(
        self,
        main: str,
        files: Sequence[StoredFile],
        limits: LimitsConfig,
        spans: Sequence[Span] = (),
        groups: Span = (0, 0),
    ) -> None:
        self.main, self.limits = main, limits
        self.groups = groups if spans else None
        """Row groups that are the unit's, None for all."""
        self.by_name = {file.name: file for file in files}
        self.images = Images(())
        self._digests = {f.name: [Digest(0, f.size or None)] for f in files}
        if spans:
            self._digests[main] = [Digest(*span) for span in spans]
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.images.close()
        if self._folder is not None:
            self._folder.cleanup()

    def stream(self, name: str | None = None) -> BinaryIO:
        """A file from its first byte, as it is stored."""
        file = self.by_name[name or self.main]
        return self._opened(file)

    def plain(self, name: str | None = None) -> BinaryIO:
        """A file from its first byte, without its compression."""
        named = name or self.main
        return unpacked(self.seekable(name) if named.lower().endswith(".zip") else self.stream(name), named)

    def twice(self, name: str | None = None) -> BinaryIO:
        """A file from its first byte, without its compression, that is read more than once: from elsewhere, copied."""
        file = self.by_name[name or self.main]
        try:
            return self.copy(file).open("rb")
        except OneFlowError:
            raise
        except Exception:  # noqa: BLE001 what was good of a broken file was copied, and breaks off there
            return self.copy(file).open("rb")

    def seekable(self, name: str | None = None) -> BinaryIO:
        """A file that is read here and there: by range requests, or as a copy where the server gives no ranges."""
        file = self.by_name[name or self.main]
        filesystem, path = open_fs(file.url)
        if "http" not in filesystem.protocol or _gives_ranges(filesystem, path, file.size):
            return self._opened(file, streamed=False)
        return self.copy(file).open("rb")

    def copy(self, file: StoredFile) -> Path:
        """A local path of a file without its compression: itself where it is that already."""
        filesystem, path = open_fs(file.url)
        if isinstance(filesystem, LocalFileSystem) and not file.name.lower().endswith(COMPRESSIONS):
            return Path(path)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="oneflow-ingest-")
        target = Path(self._folder.name, hashlib.sha256(file.url.encode()).hexdigest()[:32])
        if not target.exists():
            with unpacked(self._opened(file), file.name) as stream, target.open("xb") as out:
                while piece := stream.read(PIECE):
                    out.write(piece)
        return target

    def sha256(self) -> str:
        """SHA-256 of the unit's only file, or over the names and SHA-256 of all; what was not read yet, is."""
        digests = {name: self._finished(name) for name in self.by_name}
        if len(digests) == 1:
            return next(iter(digests.values()))
        return hashlib.sha256("\n".join(f"{n}:{digests[n]}" for n in sorted(digests)).encode()).hexdigest()

    def _opened(self, file: StoredFile, *, streamed: bool = True) -> BinaryIO:
        ours = self.by_name.get(file.name) is file
        raw = StoredStream(file, self._digests[file.name] if ours else (), streamed=streamed)
        return cast(BinaryIO, io.BufferedReader(raw, BLOCK if streamed else SMALL))

    def _finished(self, name: str) -> str:
        digests = self._digests[name]
        for digest in digests:
            if not digest.done:
                with StoredStream(self.by_name[name], [digest]) as stream:
                    buffer = memoryview(bytearray(BLOCK))
                    while not digest.done:
                        stream.seek(digest.at)
                        if not stream.readinto(buffer[: digest.wanting]):
                            break
        if len(digests) == 1:
            return digests[0].hexdigest()
        return hashlib.sha256("\n".join(d.hexdigest() for d in digests).encode()).hexdigest()


def _gives_ranges(filesystem: object, path: str, size: int) -> bool:
    from fsspec.implementations.http import HTTPFile

    if size < 2:
        return False
    try:
        with filesystem.open(path, "rb", block_size=BLOCK, size=size, cache_type="none") as stream:  # type: ignore[attr-defined]
            stream.seek(size - 1)
            return isinstance(stream, HTTPFile) and len(stream.read(1)) == 1
    except (ValueError, OSError):
        return False
