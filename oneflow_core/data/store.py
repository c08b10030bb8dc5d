"""The shards of one corpus, opened on first use: local ones mapped, remote ones fetched whole into a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.manifest import Manifest, ShardEntry
from oneflow_core.data.reader import ShardReader, index_url

OPEN_SHARDS = 256
FETCHES_AT_ONCE = 2


class ShardStore:
    """Readers of a corpus's shards by number in the manifest. Thread-safe.

    A remote shard is fetched once into `cache` under its digest, checked, and mapped from there; workers of a
    machine share the cache. Files that were used longest ago make room when it holds more than `cache_bytes`.
    The index of a shard is checked against the manifest, and each member against the index when it is read.
    """

    def __init__(self, manifest: Manifest, cache: Path, cache_bytes: int) -> None:
        self.manifest = manifest
        self._cache, self._cache_bytes = cache, cache_bytes
        self._open: OrderedDict[int, Future[ShardReader]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="shards")

    def prefetch(self, number: int) -> None:
        """Begin to open shard `number` in the background."""
        self._future(number)

    def reader(self, number: int) -> ShardReader:
        """The reader of shard `number`; waits until it is there.

        Raises:
            FileNotFoundError: the manifest names a shard that is gone.
            ShardError: the shard or its index is not the one that the manifest describes.
        """
        return self._future(number).result()

    def close(self) -> None:
        """Stop fetching; readers are closed when the last sample read through them is let go."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._open.clear()

    def _future(self, number: int) -> Future[ShardReader]:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
            else:
                self._open[number] = self._pool.submit(self._open_shard, self.manifest.shards[number])
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
            return self._open[number]

    def _open_shard(self, entry: ShardEntry) -> ShardReader:
        url = self.manifest.shard_url(entry)
        if "://" not in url or url.startswith("file://"):
            index = _index(url, Path(index_url(url.removeprefix("file://"))).read_bytes(), entry)
            return ShardReader(url, index)
        index = _index(url, _fetch(index_url(url)), entry)
        return ShardReader(self._cached(url, entry), index)

    def _cached(self, url: str, entry: ShardEntry) -> Path:
        path = self._cache / f"{entry.sha256}.tar"
        if path.is_file() and _digest(path.read_bytes()) == entry.sha256:
            os.utime(path)
            return path
        data = _fetch(url)
        if (found := _digest(data)) != entry.sha256:
            wrong = f"sha256 is {found[:12]}, the manifest says {entry.sha256[:12]}"
            raise ShardError(f"{url}: {wrong}; run oneflow corpus verify, then build the shard anew")
        self._make_room(len(data))
        return _write(path, data)

    def _make_room(self, size: int) -> None:
        """Unlink what was used longest ago; what is mapped, here or in another worker, stays readable."""
        files = sorted(self._cache.glob("*.tar"), key=lambda file: file.stat().st_mtime)
        held = sum(file.stat().st_size for file in files)
        while files and held + size > self._cache_bytes:
            oldest = files.pop(0)
            held -= oldest.stat().st_size
            oldest.unlink(missing_ok=True)


def default_cache() -> Path:
    """Where shards are cached when the config names no place: under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oneflow" / "shards"


def _index(url: str, data: bytes, entry: ShardEntry) -> ShardIndex:
    if _digest(data) != entry.index_sha256:
        raise ShardError(f"{index_url(url)}: is not the index that the manifest describes; build it anew")
    return ShardIndex.from_bytes(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fetch(url: str) -> bytes:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)
    data: bytes = filesystem.cat_file(path)
    return data


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".fetch-", delete=False) as stream:
        stream.write(data)
    Path(stream.name).replace(path)
    return path
