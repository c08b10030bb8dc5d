"""The Frechet distance against torchmetrics' FrechetInceptionDistance, which takes any network for its features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from oneflow_core.encoders import UnderstandingEncoder
from oneflow_core.metrics.frechet import FeatureStatistics, frechet_distance
from oneflow_core.shapes import render, sample_in_split
from tests.reference import shared


class Given(nn.Module):
    """Features that are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, vectors_ND: Tensor) -> Tensor:
        return vectors_ND


class Pooled(nn.Module):
    """The embedded understanding encoder's patch features, their mean over the patches: float64 [N, dim]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = UnderstandingEncoder.from_pretrained("embedded")
        self.num_features = self.encoder.dim

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.encoder.encode(images_NCHW.permute(0, 2, 3, 1).numpy()).mean(1).double()


def theirs(real: np.ndarray, fake: np.ndarray, batch: int = 16) -> float:
    metric = FrechetInceptionDistance(feature=Given(real.shape[1]))
    for vectors, is_real in ((real, True), (fake, False)):
        for start in range(0, len(vectors), batch):
            metric.update(torch.from_numpy(vectors[start : start + batch]).double(), real=is_real)
    return float(metric.compute())


def ours(real: np.ndarray, fake: np.ndarray) -> float:
    return frechet_distance(FeatureStatistics.of("x", real), FeatureStatistics.of("x", fake))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 24), st.integers(3, 40), st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 2**31))
def test_features_of_full_rank_are_as_far_apart(
    width: int, more: int, scale: float, shift: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(2, width, width))
    real = rng.normal(size=(width + more, width)) @ mixing[0]
    fake = scale * rng.normal(size=(width + more + 1, width)) @ mixing[1] + shift
    size = np.trace(np.cov(real.T).reshape(width, width)) + np.trace(np.cov(fake.T).reshape(width, width))
    assert ours(real, fake) == pytest.approx(theirs(real, fake), rel=1e-8, abs=1e-8 * size)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 32), st.integers(2, 12), st.integers(0, 2**31))
def test_fewer_images_than_features_are_as_far_apart(width: int, count: int, seed: int) -> None:
    """torchmetrics takes roots of eigenvalues of a product without full rank, of which many are rounding alone."""
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(count, width)), rng.normal(0.3, 2, size=(count + 1, width))
    assert ours(real, fake) == pytest.approx(theirs(real, fake), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("basic_64d", 1e-9), ("relu_like_positive", 1e-9), ("fewer_samples_than_dims", 1e-5)],
)
def test_stored_features_are_as_far_apart(name: str, precision: float) -> None:
    with np.load(shared(f"fid/{name}.npz"), allow_pickle=False) as held:
        assert ours(held["real"], held["fake"]) == pytest.approx(
            theirs(held["real"], held["fake"], 100), rel=precision
        )


def test_pictures_through_a_network_are_as_far_apart() -> None:
    """From pixels on: scenes of two splits, one of them with noise, by features of the embedded encoder."""
    rng, network = np.random.default_rng(0), Pooled()
    real = np.stack([render(sample_in_split(rng, "train")) for _ in range(160)])
    fake = np.stack([render(sample_in_split(rng, "heldout_pair")) for _ in range(150)])
    fake = (fake + rng.normal(0, 12, fake.shape)).clip(0, 255).astype(np.uint8)
    metric = FrechetInceptionDistance(feature=network)
    statistics = []
    for images, is_real in ((real, True), (fake, False)):
        metric.update(torch.from_numpy(images).permute(0, 3, 1, 2), real=is_real)
        features = network.encoder.encode(images).mean(1).numpy()
        statistics.append(FeatureStatistics.of(f"{network.encoder.id}/mean", features))
    wanted = float(metric.compute())
    assert frechet_distance(*statistics) == pytest.approx(wanted, rel=1e-6) and wanted > 0.1
