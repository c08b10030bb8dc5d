"""Remote shards on a local disk, shared by the processes of a machine, within a limit of bytes.

A file appears whole under its shard's digest or not at all. While it is fetched it has another name, takes its room
from the start and is locked by whoever fetches it; so a process that is killed leaves nothing but a file without a
lock, which the next one removes. What is evicted while somebody maps it stays readable there, and takes room on the
disk, until it is let go.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oneflow_core.data.manifest import ShardEntry
from oneflow_core.data.remote import fetch

CHUNK = 32 << 20
"""Bytes of one request: what is lost when one fails."""
STRIPES = 256
"""Shards are fetched once at a time in each."""
PART = ".fetch-"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Why a directory may take no file."""

_log = logging.getLogger(__name__)


class ShardCache:
    """Files of shards in `directory`, of at most `limit` bytes together. Safe for threads and processes."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit

    def path(self, url: str, shard: ShardEntry) -> Path | None:
        """The file of `shard`, which lies at `url`, fetched where it is not there; None where there is no room for it.

        Its size is right; of its content nothing is known, since readers check what they read.

        Raises:
            FileNotFoundError: nothing at `url`.
        """
        if shard.bytes > self.limit:
            return None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock(f".lock-{int(shard.sha256[:8], 16) % STRIPES:02x}"):
                return self._held(shard) or self._fetched(url, shard)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            _log.warning("%s: %s; shards are read by ranges", self.directory, error.strerror)
            return None

    def drop(self, shard: ShardEntry) -> None:
        """Forget the file of `shard`, which was found damaged."""
        self._file(shard).unlink(missing_ok=True)

    def _file(self, shard: ShardEntry) -> Path:
        return self.directory / f"{shard.sha256}.tar"

    def _held(self, shard: ShardEntry) -> Path | None:
        path = self._file(shard)
        try:
            if path.stat().st_size != shard.bytes:
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def _fetched(self, url: str, shard: ShardEntry) -> Path:
        part = self.directory / f"{PART}{shard.sha256}"
        with self._reserved(part, shard.bytes) as file:
            for start in range(0, shard.bytes, CHUNK):
                stop = min(start + CHUNK, shard.bytes)
                data = fetch(url, start, stop, size=stop - start)
                if os.pwrite(file, data, start) != len(data):
                    raise OSError(None, "a file was written in part")
            part.replace(self._file(shard))
        return self._file(shard)

    @contextmanager
    def _reserved(self, part: Path, size: int) -> Iterator[int]:
        """A locked file of `size` bytes; it is gone afterwards unless it has another name by then."""
        with self._lock(".lock"):
            self._make_room(size)
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                os.posix_fallocate(file, 0, size)
            except BaseException:
                part.unlink(missing_ok=True)
                os.close(file)
                raise
        try:
            yield file
        finally:
            part.unlink(missing_ok=True)
            os.close(file)

    def _make_room(self, size: int) -> None:
        """Removes what killed processes left, then what was used longest ago."""
        left = [part for part in self.directory.glob(f"{PART}*") if not _remove_abandoned(part)]
        files = sorted((_facts(path) for path in self.directory.glob("*.tar")), key=lambda facts: facts[0])
        held = sum(_facts(path)[1] for path in left) + sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in files:
            if held + size <= self.limit:
                return
            path.unlink(missing_ok=True)
            held -= bytes_

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Held by one thread of one process; the system lets go of it when the process dies."""
        file = os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def default_cache() -> Path:
    """Where shards are cached when the config names no place: under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oneflow" / "shards"


def _facts(path: Path) -> tuple[float, int, Path]:
    """Time of last use and size; nothing of both for a file that just went."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0, 0, path
    return status.st_mtime, status.st_size, path


def _remove_abandoned(part: Path) -> bool:
    try:
        file = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)
