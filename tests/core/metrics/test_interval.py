"""Intervals of statistics that are no means, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oneflow_core.metrics import interval
from oneflow_core.metrics.frechet import FeatureStatistics, frechet_distance, frechet_distances
from oneflow_core.metrics.interval import mean, resampled


def test_the_interval_of_a_mean_has_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = resampled(lambda w: float(w @ values / w.sum()), 400, resamples=2000)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert found.low + found.high == pytest.approx(2 * found.value)


def test_groups_are_drawn_whole() -> None:
    """Ten groups of forty equal values are ten values."""
    values = np.repeat(np.random.default_rng(1).normal(size=10), 40)
    groups = [str(n // 40) for n in range(400)]
    found = resampled(lambda w: float(w @ values / w.sum()), 400, resamples=3000, groups=groups)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(10), rel=0.06)


def test_bounds_few_resamples_and_nothing() -> None:
    assert resampled(lambda w: 0.1, 3, resamples=50).low == pytest.approx(0.1)
    values = np.array([0.0, 0.0, 1.0])
    found = resampled(lambda w: float(w @ values / 3), 3, resamples=50, least=0)
    assert found.low == 0 and found.high > 0.5
    assert math.isnan(resampled(lambda w: 1.0, 3, resamples=1).low)
    assert math.isnan(resampled(lambda w: 1.0, 0).value)
    kept = resampled(lambda w: math.nan if w[0] == 0 else 1.0, 3, resamples=50)
    assert (kept.low, kept.value, kept.high) == (1, 1, 1)


def test_many_items_are_drawn_in_parts_that_make_the_same_kind_of_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(2).normal(size=300).tolist()
    whole = mean(values)
    monkeypatch.setattr(interval, "AT_ONCE", 1000)
    parts = mean(values)
    assert parts.value == whole.value
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.02)


def test_the_distance_by_weights_is_the_distance_of_the_drawn_set() -> None:
    rng = np.random.default_rng(3)
    reference = FeatureStatistics.of("x", rng.normal(size=(30, 5)))
    vectors = rng.normal(0.5, 1.3, size=(20, 5))
    distance = frechet_distances(reference, vectors)
    assert distance(np.ones(20)) == pytest.approx(
        frechet_distance(reference, FeatureStatistics.of("x", vectors)), rel=1e-9
    )
    drawn = rng.integers(20, size=20)
    wanted = frechet_distance(reference, FeatureStatistics.of("x", vectors[drawn]))
    assert distance(np.bincount(drawn, minlength=20).astype(float)) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ValueError, match="do not compare"):
        frechet_distances(reference, vectors[:, :3])
