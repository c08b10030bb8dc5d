"""Means and ratios of means with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 10_000_000
"""Numbers that are drawn at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure from `count` items, and the interval that holds it with probability `LEVEL`.

    The interval is a percentile bootstrap over groups of items that stand or fall together (the same picture
    asked in other words); it shrinks to a point where all agree, however few they are. Without items all three
    are NaN.
    """

    value: float
    low: float
    high: float
    count: int


def mean(values: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """The mean of `values`; items with an equal name in `groups` are resampled together."""
    return ratio(values, [1.0] * len(values), groups, seed)


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Estimate:
    """sum(numerators) / sum(denominators), resampled as pairs; NaN where the denominators sum to 0.

    Raises:
        ValueError: the sequences are not of one length.
    """
    count = len(numerators)
    if len(denominators) != count or (groups is not None and len(groups) != count):
        raise ValueError(
            f"{count} numerators, {len(denominators)} denominators and their groups differ in length"
        )
    if count == 0 or sum(denominators) == 0:
        return Estimate(math.nan, math.nan, math.nan, count)
    sums = _sums(np.array([numerators, denominators], float), groups)
    above, below = _resampled_sums(sums, np.random.default_rng(seed))
    resampled = above[below != 0] / below[below != 0]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sums[0].sum() / sums[1].sum()), float(low), float(high), count)


def resampled(
    statistic: Callable[[NDArray[np.float64]], float],
    count: int,
    *,
    resamples: int = RESAMPLES,
    groups: Sequence[str] | None = None,
    least: float = -math.inf,
    seed: int = 0,
) -> Estimate:
    """A statistic that is no mean of items, as `statistic(weight)` of how often each of `count` items counts, [count].

    The interval is the value and 1.96 standard deviations of bootstrap resamples on both sides (not below `least`):
    statistics such as a Frechet distance or CIDEr are biased by the doubles in a resample, so that percentiles of
    resamples need not even hold the value. It needs few resamples; fewer than two give no interval (NaN).
    """
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = statistic(np.ones(count))
    _, index = np.unique(np.array(groups if groups is not None else range(count)), return_inverse=True)
    rng, number = np.random.default_rng(seed), int(index.max()) + 1
    drawn = [
        statistic(np.bincount(rng.integers(number, size=number), minlength=number)[index].astype(float))
        for _ in range(resamples)
    ]
    found = [one for one in drawn if math.isfinite(one)]
    spread = 1.96 * float(np.std(found, ddof=1)) if len(found) > 1 else math.nan
    # max would take the bound where the spread is no number.
    low = float(np.maximum(least, value - spread))
    return Estimate(value, low, value + spread, count)


def _resampled_sums(sums: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Sums of each resample, [2, RESAMPLES]; many groups are drawn a few resamples at a time, for memory."""
    groups = sums.shape[1]
    step = max(1, AT_ONCE // groups)
    parts = [
        sums[:, rng.integers(groups, size=(min(step, RESAMPLES - start), groups))].sum(axis=2)
        for start in range(0, RESAMPLES, step)
    ]
    return np.concatenate(parts, axis=1)


def _sums(pairs: NDArray[np.float64], groups: Sequence[str] | None) -> NDArray[np.float64]:
    """Sums over each group, [2, groups]."""
    if groups is None:
        return pairs
    names, index = np.unique(np.array(groups), return_inverse=True)
    return np.stack([np.bincount(index, row, len(names)) for row in pairs])
