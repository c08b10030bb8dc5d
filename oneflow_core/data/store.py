"""The shards of one corpus, opened on first use: local ones mapped, remote ones from a cache or read by ranges."""

from __future__ import annotations

import hashlib
import resource
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from oneflow_core.data.cache import ShardCache
from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.manifest import Manifest, ShardEntry
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.remote import WrongBytesError, fetch
from oneflow_core.data.shard import Sample

T = TypeVar("T")
OPEN_SHARDS = max(16, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
"""Lanes go back and forth between the shards of their windows, so all of these should stay open; each takes a file."""
FETCHES_AT_ONCE = 2


class ShardStore:
    """Samples of a corpus by number of the shard in the manifest and row in it. Thread-safe.

    A remote shard is fetched once into `cache` and mapped from there; workers of a machine share the cache. Until it is
    there, with `cache_bytes` of 0, or where it does not fit, its samples are read by ranges. The index of a shard is
    checked against the manifest, and each member against the index when it is read; a damaged file in the cache is
    replaced.
    """

    def __init__(self, manifest: Manifest, cache: Path, cache_bytes: int) -> None:
        self.manifest = manifest
        self._cache = ShardCache(cache, cache_bytes)
        self.remote = _is_remote(manifest.base)
        self._open: OrderedDict[int, Future[ShardReader]] = OrderedDict()
        self._ready: OrderedDict[int, ShardReader] = OrderedDict()
        self._ranged: OrderedDict[int, ShardReader] = OrderedDict()
        self._waiting: OrderedDict[int, Future[ShardReader]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="shards")

    def prefetch(self, number: int) -> None:
        """Begin to open shard `number` in the background, after those that are waited for."""
        self._future(number, first=False)

    def fetch(self, number: int) -> None:
        """Wait until shard `number` is here, so that nothing of it is read by ranges on the way; raises as `sample`."""
        self._future(number, first=True).result()

    def key(self, number: int, row: int) -> str:
        """The key of sample `row` of shard `number`; raises as `sample` does."""
        return self._reader(number).index.samples.key(row)

    def sample(self, number: int, row: int) -> Sample:
        """Sample `row` of shard `number`.

        Raises:
            FileNotFoundError: the manifest names a shard that is gone.
            ShardError: the shard or its index is not the one that the manifest describes.
        """
        reader = self._reader(number)
        try:
            return reader[row]
        except ShardError:
            if not self.remote:
                raise
            self._forget(number, reader)
            return self._reader(number)[row]

    def close(self) -> None:
        """Stop fetching; shards are let go when the last sample read of them is."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._open.clear()
        self._ready.clear()
        self._ranged.clear()

    def _reader(self, number: int) -> ShardReader:
        """What reads shard `number` now: its file, or ranges while that is on its way."""
        if (ready := self._ready.get(number)) is not None:
            return ready
        if not self.remote:
            return self._made_ready(number, self._open_shard(number))
        future = self._future(number, first=True)
        if future.done():
            return self._made_ready(number, future.result())
        with self._lock:
            ranged = self._ranged.get(number)
        if ranged is None:
            entry = self.manifest.shards[number]
            ranged = ShardReader(self.manifest.shard_url(entry), self._index(number, entry))
            with self._lock:
                _keep(self._ranged, number, ranged)
        return ranged

    def _made_ready(self, number: int, reader: ShardReader) -> ShardReader:
        with self._lock:
            _keep(self._ready, number, reader)
        return reader

    def _future(self, number: int, first: bool) -> Future[ShardReader]:
        with self._lock:
            held = self._open.get(number) or self._waiting.get(number)
            if held is None or (held.done() and held.exception() is not None):
                held = self._waiting[number] = Future()
                self._pool.submit(self._open_next)
            if first and number in self._waiting:
                self._waiting.move_to_end(number, last=False)
            _keep(self._open, number, held)
            return held

    def _open_next(self) -> None:
        """Open the shard that is wanted most."""
        with self._lock:
            number, future = self._waiting.popitem(last=False)
        try:
            future.set_result(self._open_shard(number))
        except BaseException as error:
            future.set_exception(error)

    def _open_shard(self, number: int) -> ShardReader:
        entry = self.manifest.shards[number]
        url = self.manifest.shard_url(entry)
        if not self.remote:
            return ShardReader(url.removeprefix("file://"), self._index(number, entry))
        path = self._cache.path(url, entry)
        return ShardReader(path or url, self._index(number, entry), name=url)

    def _index(self, number: int, entry: ShardEntry) -> ShardIndex:
        with self._lock:
            if number in self._ranged:
                return self._ranged[number].index
        url = index_url(self.manifest.shard_url(entry))
        try:
            if self.remote:
                return ShardIndex.from_bytes(fetch(url, sha256=entry.index_sha256))
            data = Path(url.removeprefix("file://")).read_bytes()
        except WrongBytesError:
            data = b""
        if hashlib.sha256(data).hexdigest() != entry.index_sha256:
            raise ShardError(f"{url}: is not the index that the manifest describes; build it anew")
        return ShardIndex.from_bytes(data)

    def _forget(self, number: int, reader: ShardReader) -> None:
        """Have a shard fetched anew, once for all threads that read it through `reader`."""
        with self._lock:
            held = self._open.get(number)
            if held is not None and held.done() and held.exception() is None and held.result() is reader:
                self._cache.drop(self.manifest.shards[number])
                del self._open[number]
            self._ready.pop(number, None)


def _keep(held: OrderedDict[int, T], number: int, value: T) -> None:
    """`value` as the one kept last; those kept longest ago go where they are too many."""
    held[number] = value
    held.move_to_end(number)
    while len(held) > OPEN_SHARDS:
        held.popitem(last=False)


def _is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file://")
