"""CIDEr-D as sums over a table that is built once, so that a bootstrap can count images again and again.

The weight of a run of tokens depends on how many images' references hold it. Products of two weights of one run are
its squared idf times counts that never change: the table keeps those counts, and a score is a few sums over them.

Shapes: I images with a caption, R pairs of a caption and a reference, G runs of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.grams import ORDERS, Tokens, grams

SIGMA = 6.0
Vector = NDArray[np.float64]


@dataclass
class _Sums:
    """A sparse matrix [rows, runs] as triples, which is multiplied by a weight of each run."""

    rows: list[int] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, row: int, run: int, value: float) -> None:
        self.rows.append(row)
        self.runs.append(run)
        self.values.append(value)

    def freeze(self) -> None:
        self._rows, self._runs = np.array(self.rows, np.int64), np.array(self.runs, np.int64)
        self._values = np.array(self.values, np.float64)

    def times(self, weight_G: Vector, rows: int) -> Vector:
        weighted: Vector = self._values * weight_G[self._runs]
        return np.asarray(np.bincount(self._rows, weights=weighted, minlength=rows), np.float64)


class CiderTable:
    """The captions of some images and the references of all of them."""

    def __init__(self, made: Mapping[str, Tokens], references: Mapping[str, Sequence[Tokens]]) -> None:
        """Counts runs of tokens; `made` may leave out images whose references count for rarity."""
        self._ids: dict[tuple[str, ...], int] = {}
        self._images = {name: place for place, name in enumerate(references)}
        self._seen, self._shared, self._ours, self._theirs = _Sums(), _Sums(), _Sums(), _Sums()
        apart: list[float] = []
        image_R: list[int] = []
        for name, truths in references.items():
            for run in {g for truth in truths for n in range(ORDERS) for g in grams(truth, n + 1)}:
                self._seen.add(self._id(run), self._images[name], 1.0)
        for place, (name, tokens) in enumerate(made.items()):
            mine = [grams(tokens, n + 1) for n in range(ORDERS)]
            self._count(self._ours, place, mine)
            for truth in references[name]:
                other = [grams(truth, n + 1) for n in range(ORDERS)]
                self._count(self._theirs, len(image_R), other)
                self._compare(len(image_R), mine, other)
                # Runs of two tokens are what the official code takes for the length.
                lengths = max(0, len(tokens) - 1) - max(0, len(truth) - 1)
                apart.append(float(np.exp(-(lengths**2) / (2 * SIGMA**2))))
                image_R.append(place)
        for sums in (self._seen, self._shared, self._ours, self._theirs):
            sums.freeze()
        self._apart_R, self._image_R = np.array(apart), np.array(image_R, np.int64)
        self.count = len(made)

    def scores(self, weight: Vector | None = None) -> Vector:
        """CIDEr-D of each caption, [I], when image n of `references` counts `weight[n]` times; None: once each."""
        weight = np.ones(len(self._images)) if weight is None else weight
        seen_G = self._seen.times(weight, len(self._ids))
        square_G = np.square(np.log(weight.sum()) - np.log(np.maximum(1.0, seen_G)))
        pairs = len(self._image_R)
        shared_R4 = self._shared.times(square_G, pairs * ORDERS).reshape(pairs, ORDERS)
        ours_I4 = np.sqrt(self._ours.times(square_G, self.count * ORDERS)).reshape(self.count, ORDERS)
        theirs_R4 = np.sqrt(self._theirs.times(square_G, pairs * ORDERS)).reshape(pairs, ORDERS)
        norm_R4 = ours_I4[self._image_R] * theirs_R4
        cosine_R4 = np.divide(shared_R4, norm_R4, out=shared_R4.copy(), where=norm_R4 > 0)
        alike_R = self._apart_R * cosine_R4.mean(1)
        references_I = np.bincount(self._image_R, minlength=self.count)
        found: Vector = 10 * np.bincount(self._image_R, alike_R, self.count) / references_I
        return found

    def _id(self, run: tuple[str, ...]) -> int:
        return self._ids.setdefault(run, len(self._ids))

    def _count(self, sums: _Sums, row: int, orders: Sequence[Counter[tuple[str, ...]]]) -> None:
        for n, counted in enumerate(orders):
            for run, times in counted.items():
                sums.add(row * ORDERS + n, self._id(run), float(times**2))

    def _compare(
        self, row: int, mine: Sequence[Counter[tuple[str, ...]]], other: Sequence[Counter[tuple[str, ...]]]
    ) -> None:
        for n, (ours, theirs) in enumerate(zip(mine, other, strict=True)):
            for run, times in ours.items():
                if run in theirs:
                    shared = min(times, theirs[run]) * theirs[run]
                    self._shared.add(row * ORDERS + n, self._id(run), float(shared))
