"""The order in which lanes read a corpus: integers only, a pure function of sizes, seed, epoch and lane.

A corpus of N samples is cut into L lanes. In each epoch the shards stand in a seeded order; lane l owns the
contiguous range [l*N/L, (l+1)*N/L) of the samples in that order, and permutes it in windows. So each sample
is read once an epoch by exactly one lane, every lane has data even where shards are fewer than lanes, a lane
stays close to few shards at a time, and a position is found without reading what came before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LaneError(ValueError):
    """A corpus that cannot be cut into lanes, or a state that does not fit; the message says how to mend."""


class Position(NamedTuple):
    """One sample of a corpus: shard `shard` (manifest order), row `row` of its index, read in `epoch`."""

    epoch: int
    shard: int
    row: int


def generator(*parts: object) -> np.random.Generator:
    """A generator that depends on `parts` alone: the same on every machine, process and library version."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


class LaneOrder:
    """Where sample number `consumed` of a lane lies.

    Args:
        shard_samples: number of samples of each shard, in manifest order.
        lanes: number of lanes the corpus is cut into.
        seed: any text; orders of different seeds are unrelated.
        window: samples that are permuted together, exactly.
    """

    def __init__(
        self, shard_samples: Sequence[int] | NDArray[np.int64], *, lanes: int, seed: str, window: int
    ) -> None:
        self._sizes = np.asarray(shard_samples, dtype=np.int64)
        self.total = int(self._sizes.sum())
        if lanes < 1 or window < 1:
            raise LaneError(f"lanes and window must be positive, not {lanes} and {window}")
        if self.total < lanes:
            found = f"{self.total} samples cannot feed {lanes} lanes"
            raise LaneError(f"{found}; lower data.lanes or add documents")
        self.lanes, self._seed, self._window = lanes, seed, window
        self._starts = [lane * self.total // lanes for lane in range(lanes + 1)]
        self._shards_of = lru_cache(maxsize=2)(self._shard_order)
        self._block_of = lru_cache(maxsize=2 * lanes)(self._block_places)

    def size(self, lane: int) -> int:
        """Samples that lane `lane` reads in one epoch: the same number in every epoch."""
        return self._starts[lane + 1] - self._starts[lane]

    def locate(self, lane: int, consumed: int) -> Position:
        """The sample that lane `lane` reads after `consumed` others, counted over all epochs."""
        epoch, offset = divmod(consumed, self._starts[lane + 1] - self._starts[lane])
        block, inside = divmod(offset, self._window)
        shards, rows = self._block_of(epoch, lane, block)
        return Position(epoch, shards.item(inside), rows.item(inside))

    def upcoming(self, lane: int, consumed: int, begins: bool = False) -> list[int]:
        """Where a window or (`begins`) a run begins: shards of this window and the next, to fetch; else nothing."""
        epoch, offset = divmod(consumed, self.size(lane))
        if offset % self._window and not begins:
            return []
        consumed -= offset % self._window
        offset -= offset % self._window
        rest = min(self._window, self.size(lane) - offset)
        return self._shards_between(lane, epoch, offset) + self._shards_between(
            lane, *divmod(consumed + rest, self.size(lane))
        )

    def _shards_between(self, lane: int, epoch: int, offset: int) -> list[int]:
        """Shards that hold the window which begins at `offset` of the lane."""
        first = self._starts[lane] + offset
        last = min(first + self._window, self._starts[lane + 1]) - 1
        order, starts = self._shards_of(epoch)
        low, high = np.searchsorted(starts, [first, last], side="right") - 1
        return [int(shard) for shard in order[low : high + 1]]

    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Non-empty shards in the order of `epoch`, and the flat position at which each starts."""
        order = generator(self._seed, "shards", epoch).permutation(np.flatnonzero(self._sizes))
        return order, np.cumsum(self._sizes[order]) - self._sizes[order]

    def _block_places(self, epoch: int, lane: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards and rows of a window's samples, in the order in which they are read."""
        count = min(self._window, self.size(lane) - block * self._window)
        flat = generator(self._seed, "window", epoch, lane, block).permutation(count)
        flat += self._starts[lane] + block * self._window
        order, starts = self._shards_of(epoch)
        places = np.searchsorted(starts, flat, side="right") - 1
        return order[places].astype(np.int32), (flat - starts[places]).astype(np.int32)


class Blend:
    """Which corpus a lane draws from next: the one furthest behind its weight, so shares hold to one sample.

    The choice depends on the counts drawn so far and on the lane alone; lanes start at seeded phases, so that
    a rare corpus does not come up in all lanes at one step.
    """

    def __init__(self, weights: Mapping[str, float], *, seed: str, lane: int) -> None:
        if not weights or any(not weight > 0 for weight in weights.values()):
            found = f"corpus weights must be positive, not {dict(weights)}"
            raise LaneError(f"{found}; drop a corpus of weight 0")
        self._names = sorted(weights)
        self._weights = weights
        self._phase = dict(zip(self._names, generator(seed, "blend", lane).random(len(weights)), strict=True))

    def choose(self, drawn: Mapping[str, int]) -> str:
        """Name of the corpus to draw from, after `drawn[name]` samples of each."""
        return min(self._names, key=lambda name: (drawn[name] + self._phase[name]) / self._weights[name])

    def draws_until(self, counts: Mapping[str, int]) -> int:
        """Draws after which at least `counts[name]` samples of every corpus have been drawn."""
        total = sum(self._weights.values())
        return max(int(counts[name] * total / self._weights[name]) + 2 * len(counts) for name in counts)
