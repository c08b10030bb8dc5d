"""Lengths of generated texts against real ones: insertion models betray themselves here first (METHOD 7.2)."""

from __future__ import annotations

from collections.abc import Sequence

from oneflow_core.metrics.interval import Estimate, ratio


def word_count(text: str) -> int:
    """Words, as white space separates them."""
    return len(text.split())


def length_ratio(
    generated: Sequence[str], expected_words: Sequence[float], groups: Sequence[str] | None = None
) -> Estimate:
    """Words generated / words of the data on the same items; 1 is right. `groups` as in `interval.mean`."""
    return ratio([float(word_count(text)) for text in generated], expected_words, groups)
