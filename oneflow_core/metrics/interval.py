"""Means and ratios of means with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure from `count` items, and the interval that holds it with probability `LEVEL`.

    The interval is a percentile bootstrap over items: it shrinks to a point where all items agree, however few
    they are. Without items all three are NaN.
    """

    value: float
    low: float
    high: float
    count: int


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of `values`."""
    return ratio(values, [1.0] * len(values), seed)


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Estimate:
    """sum(numerators) / sum(denominators), items resampled as pairs; NaN where the denominators sum to 0.

    Raises:
        ValueError: the two are not of one length.
    """
    pairs = np.array([numerators, denominators], float)
    count = pairs.shape[1]
    if count == 0 or pairs[1].sum() == 0:
        return Estimate(math.nan, math.nan, math.nan, count)
    chosen = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    above, below = pairs[:, chosen].sum(axis=2)
    resampled = above[below != 0] / below[below != 0]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(pairs[0].sum() / pairs[1].sum()), float(low), float(high), count)
