"""Compressed streams, read forwards and within bounds: a bomb is told before it fills memory or time."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

COMPRESSIONS = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip")
FREE_BYTES = 256 << 20
"""What may come out of a file however small it is."""
RATIO = 200
"""Most bytes that may come out for each byte of the file, past FREE_BYTES."""
PIECE = 1 << 20


class Broken(ValueError):
    """A file whose bytes are damaged, or unpack to too much; its text is the reason, in few words."""


def compressed(*suffixes: str) -> tuple[str, ...]:
    """Each suffix, plain and with what may follow it where the file is compressed."""
    return tuple(s + c for s in suffixes for c in ("", ".gz", ".zst", ".bz2", ".xz", ".zip"))


def unpacked(stream: BinaryIO, name: str) -> BinaryIO:
    """`stream` without the compression that the end of `name` tells, or its first bytes do.

    Raises:
        Broken: an archive that holds anything but one file.
    """
    kind = _kind(stream, name)
    if kind == "":
        return stream
    return cast(BinaryIO, io.BufferedReader(_Bounded(_opened(kind, stream), stream), PIECE))


def _kind(stream: BinaryIO, name: str) -> str:
    start = cast(io.BufferedReader, stream).peek(6)[:6]
    for magic, kind in _MAGIC.items():
        if start.startswith(magic) and (kind != ".zip" or name.lower().endswith(".zip")):
            return kind
    suffix = "." + name.lower().rpartition(".")[2]
    # Nothing compressed: what the name promises is read, and told as broken.
    return {".tgz": ".gz"}.get(suffix, suffix) if suffix in COMPRESSIONS and start else ""


_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"PK\x03\x04": ".zip",
}


def _opened(kind: str, stream: BinaryIO) -> Any:
    if kind == ".gz":
        return gzip.GzipFile(fileobj=stream)
    if kind == ".bz2":
        return bz2.BZ2File(stream)
    if kind == ".xz":
        return lzma.LZMAFile(stream)
    if kind == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
    archive = zipfile.ZipFile(stream)
    files = [info for info in archive.infolist() if not info.is_dir()]
    if len(files) != 1:
        raise Broken("archive of several files")
    return archive.open(files[0])


class _Bounded(io.RawIOBase):
    """Counts what comes out against what went in; seeks forwards only, by reading."""

    def __init__(self, inner: Any, source: BinaryIO) -> None:
        self._inner, self._source, self._at = inner, source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END or target < self._at:
            raise io.UnsupportedOperation("a compressed stream is read forwards")
        scratch = bytearray(PIECE)
        while self._at < target and self.readinto(memoryview(scratch)[: target - self._at]):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(min(len(buffer), PIECE))
        buffer[: len(data)] = data
        self._at += len(data)
        if self._at > FREE_BYTES and self._at > RATIO * max(1, self._source.tell()):
            raise Broken("unpacks to too much")
        return len(data)


def lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of each line that is not blank; None for one longer than `limit`, which is never held."""
    number = 0
    while line := stream.readline(limit + 1):
        whole = line
        while len(line) > limit and not line.endswith(b"\n"):
            line = stream.readline(limit + 1)
            whole = b""
        if not whole:
            yield number, None
        elif whole.strip(b" \t\r\n\xef\xbb\xbf\0" if number == 0 else b" \t\r\n"):
            yield number, whole.removeprefix(b"\xef\xbb\xbf") if number == 0 else whole
        number += 1
