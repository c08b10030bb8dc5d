"""Histograms: how many of the documents looked at fall into each of a few bins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 16


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` of the values lie in [edges[i], edges[i + 1]); the last bin has its upper edge too."""

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    quantiles: dict[str, float]
    """p5, p50, p95 and max."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "unit": self.unit,
            "edges": list(self.edges),
            "counts": list(self.counts),
            "quantiles": self.quantiles,
        }


def histogram(name: str, unit: str, values: Sequence[float]) -> Histogram:
    """Of positive `values`: bins of equal width, or of equal ratio where they span more than a factor of 50."""
    if not len(values):
        return Histogram(name, unit, (), (), {})
    array = np.asarray(values, np.float64)
    quantiles = {f"p{q}": float(np.percentile(array, q)) for q in (5, 50, 95)} | {"max": float(array.max())}
    edges = _edges(float(array.min()), float(array.max()), bool((array == array.round()).all()))
    counts, _ = np.histogram(array, edges)
    return Histogram(name, unit, tuple(edges.tolist()), tuple(counts.tolist()), quantiles)


def _edges(low: float, high: float, whole: bool) -> np.ndarray:
    if low == high:
        return np.array([low, low + 1.0])
    if low > 0 and high / low > 50:
        edges = np.geomspace(low, high, BINS + 1)
        edges[0], edges[-1] = low, high
        return edges
    if whole and high - low < BINS:
        return np.arange(low, high + 2)
    return np.linspace(low, high, BINS + 1)
