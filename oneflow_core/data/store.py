"""The shards of one corpus, opened on first use: local ones mapped, remote ones from a cache or read by ranges."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from oneflow_core.data.cache import ShardCache
from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.manifest import Manifest, ShardEntry
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.remote import fetch
from oneflow_core.data.shard import Sample

OPEN_SHARDS = 256
FETCHES_AT_ONCE = 2


class ShardStore:
    """Samples of a corpus by number of the shard in the manifest and row in it. Thread-safe.

    A remote shard is fetched once into `cache` and mapped from there; workers of a machine share the cache. With
    `cache_bytes` of 0, or where a shard does not fit, its samples are read by ranges. The index of a shard is checked
    against the manifest, and each member against the index when it is read; a damaged file in the cache is replaced.
    """

    def __init__(self, manifest: Manifest, cache: Path, cache_bytes: int) -> None:
        self.manifest = manifest
        self._cache = ShardCache(cache, cache_bytes)
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

    def sample(self, number: int, row: int) -> Sample:
        """Sample `row` of shard `number`.

        Raises:
            FileNotFoundError: the manifest names a shard that is gone.
            ShardError: the shard or its index is not the one that the manifest describes.
        """
        reader = self.reader(number)
        try:
            return reader[row]
        except ShardError:
            if not self._is_remote(number):
                raise
            self._forget(number, reader)
            return self.reader(number)[row]

    def close(self) -> None:
        """Stop fetching; shards are let go when the last sample read of them is."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._open.clear()

    def _future(self, number: int) -> Future[ShardReader]:
        with self._lock:
            held = self._open.get(number)
            if held is None or (held.done() and held.exception() is not None):
                self._open[number] = self._pool.submit(self._open_shard, self.manifest.shards[number])
            self._open.move_to_end(number)
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
            return self._open[number]

    def _forget(self, number: int, reader: ShardReader) -> None:
        """Have a shard fetched anew, once for all threads that read it through `reader`."""
        with self._lock:
            held = self._open.get(number)
            if held is not None and held.done() and held.result() is reader:
                self._cache.drop(self.manifest.shards[number])
                del self._open[number]

    def _is_remote(self, number: int) -> bool:
        return _is_remote(self.manifest.shard_url(self.manifest.shards[number]))

    def _open_shard(self, entry: ShardEntry) -> ShardReader:
        url = self.manifest.shard_url(entry)
        if not _is_remote(url):
            url = url.removeprefix("file://")
            return ShardReader(url, _index(url, Path(index_url(url)).read_bytes(), entry))
        index = _index(url, fetch(index_url(url)), entry)
        return ShardReader(self._cache.path(url, entry) or url, index, name=url)


def _is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file://")


def _index(url: str, data: bytes, entry: ShardEntry) -> ShardIndex:
    if hashlib.sha256(data).hexdigest() != entry.index_sha256:
        raise ShardError(f"{index_url(url)}: is not the index that the manifest describes; build it anew")
    return ShardIndex.from_bytes(data)
