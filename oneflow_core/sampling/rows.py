"""Rows of a cache that are handed out and come back, so that an endless stream of documents needs no more of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneflow_core.model.cache import KeyValueCache


class Rows:
    """The rows of a cache. It grows to the most that were out at once, and no further."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        self._free: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def taken(self) -> int:
        """Rows that are out."""
        return self.cache.rows - len(self._free)

    def take(self, count: int) -> NDArray[np.int64]:
        """`count` rows that nobody else has; those that came back last are the first to go out again."""
        if (missing := count - len(self._free)) > 0:
            before = self.cache.rows
            self.cache.reserve(before + missing)
            self._free = np.concatenate([self._free, np.arange(before, self.cache.rows)])
        taken, self._free = self._free[:count].copy(), self._free[count:]
        return taken

    def give(self, rows: NDArray[np.int64]) -> None:
        """These rows are free again."""
        self._free = np.concatenate([rows, self._free])
