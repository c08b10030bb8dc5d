"""One corpus as lanes see it: the sample at a place, and which side of the holdout it is on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from oneflow_core.data.lanes import LaneOrder
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.shard import Sample
from oneflow_core.data.store import ShardStore


class Source:
    """The samples of `manifest` that are held out (`held_out`), or all the others, by lane and count.

    `holdout` is the held-out fraction; `order` says where samples lie.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: LaneOrder,
        *,
        holdout: float,
        held_out: bool,
        cache: Path,
        cache_bytes: int,
    ) -> None:
        self.manifest, self.order = manifest, order
        self._holdout, self._held_out = holdout, held_out
        self._begun = set[int]()
        self._store = ShardStore(manifest, cache, cache_bytes)

    def sample(self, lane: int, consumed: int) -> tuple[Sample, int] | None:
        """The sample that `lane` reads after `consumed` others, and its epoch; None: of the other side."""
        if self._store.remote:
            for shard in self.order.upcoming(lane, consumed, begins=lane not in self._begun):
                self._store.prefetch(shard)
            self._begun.add(lane)
        place = self.order.locate(lane, consumed)
        if self._holdout:
            key = self._store.key(place.shard, place.row)
            if is_held_out(key, self._holdout) != self._held_out:
                return None
        return self._store.sample(place.shard, place.row), place.epoch

    def close(self) -> None:
        """Let go of the shards."""
        self._store.close()


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the sample of `key` belongs to the held-out `fraction`: the same in every corpus and run."""
    digest = hashlib.sha256(f"holdout\x1f{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
