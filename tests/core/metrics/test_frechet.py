"""The Frechet distance against closed forms, and against figures on which four FID packages agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.metrics.frechet import FeatureStatistics, frechet_distance
from tests.reference import shared, shared_json


def drawn(seed: int, count: int, width: int) -> FeatureStatistics:
    return FeatureStatistics.of("test", np.random.default_rng(seed).normal(size=(count, width)))


def test_one_dimension_is_the_closed_form() -> None:
    a, b = np.array([[0.0], [2.0], [7.0]]), np.array([[1.0], [1.5], [-4.0], [9.0]])
    wanted = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(FeatureStatistics.of("x", a), FeatureStatistics.of("x", b)) == pytest.approx(
        wanted, rel=1e-12
    )


def test_scaled_features_are_the_closed_form() -> None:
    """B = s A gives C_B = s^2 C_A, whose roots commute: the distance is |m|^2 (1 - s)^2 + (1 - s)^2 tr C."""
    vectors = np.random.default_rng(0).normal(1, 2, size=(50, 6))
    a, b = FeatureStatistics.of("x", vectors), FeatureStatistics.of("x", 3 * vectors)
    wanted = 4 * (np.square(a.mean).sum() + np.trace(a.covariance))
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("basic_64d", 1e-7),
        ("relu_like_positive", 1e-7),
        ("fewer_samples_than_dims", 1e-5),
        ("identical", 1e-7),
    ],
)
def test_packages_that_people_use_agree(name: str, precision: float) -> None:
    golden = shared_json("fid/golden_fid.json")["golden"][name]
    with np.load(shared(f"fid/{name}.npz"), allow_pickle=False) as held:
        found = frechet_distance(*(FeatureStatistics.of("x", held[part]) for part in ("real", "fake")))
    for package in ("pytorch_fid", "cleanfid", "torch_fidelity", "torchmetrics_fn", "scipy_direct"):
        assert found == pytest.approx(golden[package], rel=precision, abs=1e-9)
    assert found >= 0


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(0, 99))
def test_sums_of_parts_are_the_moments_of_the_whole(first: int, second: int, width: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(3, 2, size=(first + second, width))
    parts = FeatureStatistics.of("x", vectors[:first]) + FeatureStatistics.of("x", vectors[first:])
    assert parts.count == first + second
    np.testing.assert_allclose(parts.mean, vectors.mean(0), rtol=1e-10, atol=1e-12)
    wanted = np.cov(vectors, rowvar=False, ddof=1).reshape(width, width)
    np.testing.assert_allclose(parts.covariance, wanted, rtol=1e-9, atol=1e-10)


def test_stored_statistics_come_back_and_others_are_refused(tmp_path: Path) -> None:
    kept = drawn(0, 30, 4)
    kept.save(tmp_path / "stats.npz")
    back = FeatureStatistics.load(tmp_path / "stats.npz")
    assert (back.features, back.count) == ("test", 30)
    assert frechet_distance(kept, back) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="do not compare"):
        frechet_distance(kept, drawn(1, 30, 5))
    with pytest.raises(ValueError, match="do not compare"):
        frechet_distance(kept, FeatureStatistics.of("other", np.eye(4)))
    np.savez(tmp_path / "pickled.npz", features=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="no feature statistics"):
        FeatureStatistics.load(tmp_path / "pickled.npz")


@pytest.mark.parametrize("vectors", [np.zeros((0, 3)), np.zeros(3), np.array([[np.nan, 1]])])
def test_what_is_no_set_of_features_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="features"):
        FeatureStatistics.of("x", vectors)


def test_a_single_vector_has_no_distance() -> None:
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(drawn(0, 1, 3), drawn(1, 9, 3))
