"""Runs of different lengths, one after the other in flat arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def runs(*label_T: IntArray) -> tuple[IntArray, IntArray]:
    """Starts and lengths of the runs in which no label changes."""
    total = len(label_T[0])
    change = np.zeros(max(total - 1, 0), bool)
    for label in label_T:
        change |= label[1:] != label[:-1]
    start: IntArray = np.flatnonzero(np.r_[np.ones(min(total, 1), bool), change])
    return start, np.diff(np.r_[start, total])


def ragged_range(start_B: IntArray, length_B: IntArray) -> IntArray:
    """start, start + 1, ... of each run, one after the other."""
    ends: IntArray = np.cumsum(length_B)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(start_B - (ends - length_B), length_B) + np.arange(total)
