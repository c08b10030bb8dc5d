"""Members of a tar, one after the other, whatever the tar holds: nothing is extracted, no link is followed."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from workflows.corpus.sources.packed import Broken

HEADER_BYTES = 8 << 20
"""Longest header (a name, PAX records) that is read."""
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A member that is no directory. `reason` says why it must not be used, None where it may be."""

    name: str
    size: int
    offset: int
    reason: str | None
    stream: Any

    def read(self) -> bytes:
        """All its bytes, a piece at a time."""
        pieces = []
        while piece := self.stream.read(PIECE):
            pieces.append(piece)
        data = b"".join(pieces)
        if len(data) != self.size:
            raise tarfile.ReadError("unexpected end of data")
        return data


def members(stream: BinaryIO) -> Iterator[Member]:
    """Those of a tar that is read forwards.

    Raises:
        tarfile.TarError, OSError, EOFError, ValueError, zlib.error: a tar that is cut short or damaged.
    """
    with tarfile.open(fileobj=cast(Any, _Guarded(stream)), mode="r:") as tar:
        while (info := tar.next()) is not None:
            # tarfile keeps all headers that it saw.
            tar.members = []  # type: ignore[attr-defined]
            if not info.isdir():
                readable = info.isreg() and not info.issparse()
                data = tar.extractfile(info) if readable else None
                yield Member(info.name, info.size, info.offset_data, _reason(info), data)
        _check_end(tar, stream)


def is_safe(name: str) -> bool:
    """Whether a relative path stays below where it starts."""
    return not (name.startswith(("/", "\\", "~")) or ".." in PurePosixPath(name.replace("\\", "/")).parts)


def _reason(info: tarfile.TarInfo) -> str | None:
    if not is_safe(info.name) or "\0" in info.name:
        return "path outside the tar"
    if info.issym() or info.islnk():
        return "link in tar"
    return None if info.isreg() and not info.issparse() else "special file in tar"


def _check_end(tar: tarfile.TarFile, stream: BinaryIO) -> None:
    """tarfile takes a damaged header for the end: only zeros, or nothing, may follow the last member."""
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")


class _Guarded:
    """A stream that does not let a header claim more than HEADER_BYTES."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= HEADER_BYTES:
            raise Broken("header too large")
        return self._stream.read(count)
