"""Paired tests: whether one model is better than another on the same items, and by how much.

Items that stand or fall together (questions about one picture) form a group; groups are the independent evidence, so
they are resampled, and their differences change sign, as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.interval import LEVEL, Estimate

RESAMPLES = 2000
DRAWS = 20_000
"""Of random signs, where all cannot be counted."""
MOST_COUNTED = 14
"""Groups with a difference, up to which all patterns of signs are counted."""
CHUNK = 1 << 24
MCNEMAR, SIGN_FLIP, SIGN_FLIP_DRAWN, BOOTSTRAP = (
    "McNemar's exact test",
    "sign-flip test, exact",
    "sign-flip test",
    "paired bootstrap",
)

Statistic = Callable[[NDArray[np.float64]], float]
"""A figure of items from their parts [items, parts]."""


@dataclass(frozen=True, slots=True)
class Tested:
    """A p-value, and the test that gave it."""

    p: float
    test: str


class Pairs:
    """A figure of two models over the same items.

    Args:
        ours, theirs: what each item gives to the figure, [items, parts].
        groups: the items' groups by name; None makes every item its own.
        combine: the figure from the parts of items; None is the mean of the one part.
        seed: of the bootstrap and of drawn signs.

    Raises:
        ValueError: no items, shapes that differ, or several parts without `combine`.
    """

    def __init__(
        self,
        ours: NDArray[np.float64],
        theirs: NDArray[np.float64],
        groups: Sequence[str] | None = None,
        combine: Statistic | None = None,
        seed: int = 0,
    ) -> None:
        if ours.shape != theirs.shape or ours.ndim != 2 or len(ours) == 0:
            raise ValueError(f"no pairs: parts of shapes {ours.shape} and {theirs.shape}")
        if combine is None and ours.shape[1] != 1:
            raise ValueError(f"the mean of {ours.shape[1]} parts is no figure; give combine")
        self.ours, self.theirs, self.combine, self.seed = ours, theirs, combine, seed
        names = np.arange(len(ours)) if groups is None else np.array(groups)
        self.group_N = np.unique(names, return_inverse=True)[1]
        self.groups = int(self.group_N.max()) + 1

    def difference(self) -> Estimate:
        """Ours less theirs with the percentile interval of the paired bootstrap, at `interval.LEVEL`."""
        finite = self._resampled[np.isfinite(self._resampled)]
        low, high = (
            np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(finite) else (math.nan,) * 2
        )
        return Estimate(self._difference(slice(None)), float(low), float(high), len(self.ours))

    def test(self) -> Tested:
        """Two-sided: no difference. The exact test of McNemar (1947) for scores of 0 and 1, else a sign-flip test."""
        if self.combine is None:
            return sign_flip(self._group_sums(0.0), self.seed)
        return Tested(min(1.0, 2 * min(self._share(1, 0.0), self._share(-1, 0.0))), BOOTSTRAP)

    def test_worse(self, margin: float, better: str = "higher") -> Tested:
        """One-sided: ours is worse than theirs by at most `margin`; a small p says that it is worse by more.

        For means the sign-flip test of the differences and `margin`: exact without margin, else for large samples.
        """
        sign = 1.0 if better == "higher" else -1.0
        if self.combine is None:
            return sign_flip(sign * self._group_sums(sign * margin), self.seed, one_sided=True)
        return Tested(self._share(sign, -margin), BOOTSTRAP)

    def _difference(self, chosen: slice | NDArray[np.int64]) -> float:
        combine = self.combine or _mean
        return combine(self.ours[chosen]) - combine(self.theirs[chosen])

    def _group_sums(self, added: float) -> NDArray[np.float64]:
        """Sum over each group of the items' differences and `added`."""
        found = np.bincount(self.group_N, (self.ours - self.theirs)[:, 0] + added, self.groups)
        return found.astype(float)

    @cached_property
    def _resampled(self) -> NDArray[np.float64]:
        """The difference in each bootstrap sample of groups."""
        rng = np.random.default_rng(self.seed)
        if self.combine is None:
            sums, sizes = self._group_sums(0.0), np.bincount(self.group_N).astype(float)
            found = []
            for rows in _chunks(RESAMPLES, self.groups):
                drawn = rng.integers(self.groups, size=(rows, self.groups))
                found.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
            return np.concatenate(found)
        order = np.argsort(self.group_N, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(self.group_N))[:-1])
        draws = (rng.integers(self.groups, size=self.groups) for _ in range(RESAMPLES))
        return np.array([self._difference(np.concatenate([members[g] for g in drawn])) for drawn in draws])

    def _share(self, sign: float, bound: float) -> float:
        """Share of bootstrap samples whose difference, times `sign`, is not below `bound`; never 0."""
        above = ~(sign * self._resampled < bound)
        return float(1 + np.count_nonzero(above)) / (1 + len(above))


def sign_flip(sums: NDArray[np.float64], seed: int = 0, one_sided: bool = False) -> Tested:
    """P-value of the sum of `sums` when each may as well have the other sign (Fisher 1935); small sums if `one_sided`.

    Where all are of one size this is the binomial law, which is counted: McNemar's exact test for differences of
    scores of 0 and 1. Few others are counted too; of many, `DRAWS` patterns of signs are drawn.
    """
    kept = sums[sums != 0]
    sizes = np.abs(kept)
    if not len(kept):
        return Tested(1.0, MCNEMAR)
    if np.all(sizes == sizes[0]):
        return Tested(_binomial(int((kept < 0).sum()), len(kept), one_sided), MCNEMAR)
    observed = kept.sum() if one_sided else -abs(kept.sum())
    # Sums of the same numbers in another order differ in their last bits.
    limit = observed + 1e-9 * sizes.sum()
    if len(kept) <= MOST_COUNTED:
        patterns = (np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))) & 1
        below = float(np.mean((2 * patterns - 1) @ sizes <= limit))
        return Tested(min(1.0, below if one_sided else 2 * below), SIGN_FLIP)
    rng, below_count = np.random.default_rng(seed), 0
    for size in _chunks(DRAWS, len(kept)):
        signs = rng.integers(2, size=(size, len(kept)), dtype=np.int8) * 2 - 1
        found = signs @ sizes
        below_count += int((found <= limit if one_sided else -np.abs(found) <= limit).sum())
    return Tested((1 + below_count) / (1 + DRAWS), SIGN_FLIP_DRAWN)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values for as many tests as there are, by Holm's (1979) step-down method; the family's error stays at alpha."""
    adjusted, most = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda entry: entry[1])):
        most = max(most, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = most
    return {name: adjusted[name] for name in p_values}


def _binomial(negative: int, count: int, one_sided: bool) -> float:
    """P(at least `negative` of `count` fair coins), or twice the smaller tail."""
    least = negative if one_sided else max(negative, count - negative)
    tail = sum(math.comb(count, k) for k in range(least, count + 1))
    return min(1.0, (1 if one_sided else 2) * tail / 2**count)


def _mean(parts: NDArray[np.float64]) -> float:
    return float(parts.mean())


def _chunks(total: int, width: int) -> list[int]:
    """Rows at a time, so that no chunk has many more than `CHUNK` elements."""
    most = max(1, CHUNK // max(1, width))
    return [min(most, total - start) for start in range(0, total, most)]
