"""Frechet distance between two sets of features, from moments that can be accumulated, merged, stored and compared.

It is FID (Heusel et al. 2017) only on the features of the Inception network of that paper; statistics therefore carry
the name of their features, and those of different names are not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Moments of `count` feature vectors of width D; sums of parts are the moments of the whole."""

    features: str
    """What made the features: `<encoder id>/<layer>`."""
    count: int
    mean: Matrix
    """[D]."""
    scatter: Matrix
    """[D, D]: the sum of outer products of deviations from the mean."""

    @classmethod
    def of(cls, features: str, vectors: NDArray[Any]) -> FeatureStatistics:
        """Moments of vectors [N, D], N at least 1, in float64.

        Raises:
            ValueError: not a matrix, no rows, or values that are not finite.
        """
        if vectors.ndim != 2 or not len(vectors):
            raise ValueError(f"features of shape {vectors.shape}; give [N, D] with N at least 1")
        wide = vectors.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("features hold values that are not finite; look at what the encoder was given")
        mean = wide.mean(0)
        return cls(features, len(wide), mean, (wide - mean).T @ (wide - mean))

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        """Moments of both sets together (Chan, Golub and LeVeque 1983)."""
        self._comparable(other)
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return FeatureStatistics(self.features, count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Matrix:
        """[D, D], unbiased (divided by count - 1), as every implementation of FID takes it.

        Raises:
            ValueError: a single vector has no covariance.
        """
        if self.count < 2:
            raise ValueError("one vector has no covariance; give at least two images")
        return self.scatter / (self.count - 1)

    def save(self, path: str | Path) -> None:
        """An .npz without pickled objects."""
        with Path(path).open("wb") as file:
            np.savez(file, features=self.features, count=self.count, mean=self.mean, scatter=self.scatter)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """What `save` wrote.

        Raises:
            ValueError: the file is of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                return cls(str(held["features"]), int(held["count"]), held["mean"], held["scatter"])
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"{path}: no feature statistics ({error}); make them anew") from error

    def _comparable(self, other: FeatureStatistics) -> None:
        if (self.features, self.mean.shape) != (other.features, other.mean.shape):
            raise ValueError(
                f"features {self.features} of width {len(self.mean)} and {other.features} of width "
                f"{len(other.mean)} do not compare; encode both with one encoder"
            )


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), never below 0.

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no
    complex root of a product of matrices is taken, and covariances without full rank need nothing added.

    Raises:
        ValueError: the features differ, or one set has a single vector.
    """
    first._comparable(second)
    return _distance(first, _root(first.covariance), second.mean, second.covariance)


def frechet_distances(
    reference: FeatureStatistics, vectors: NDArray[Any]
) -> Callable[[NDArray[np.float64]], float]:
    """The distance of `reference` to vectors [N, D] of the same features, as a function of how often each counts, [N].

    For a bootstrap: the root of the reference's covariance is taken once.

    Raises:
        ValueError: the widths differ.
    """
    if vectors.ndim != 2 or vectors.shape[1] != len(reference.mean):
        raise ValueError(
            f"features of shape {vectors.shape} and references of width {len(reference.mean)} do not compare"
        )
    wide, root = vectors.astype(np.float64), _root(reference.covariance)

    def distance(weight_N: NDArray[np.float64]) -> float:
        total = weight_N.sum()
        mean = weight_N @ wide / total
        spread = (wide - mean) * np.sqrt(weight_N)[:, None]
        return _distance(reference, root, mean, spread.T @ spread / (total - 1))

    return distance


def _root(covariance: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(covariance)
    root: Matrix = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def _distance(first: FeatureStatistics, root: Matrix, mean: Matrix, covariance: Matrix) -> float:
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariance @ root).clip(min=0)).sum()
    apart = np.square(first.mean - mean).sum()
    return max(0.0, float(apart + np.trace(first.covariance) + np.trace(covariance) - 2 * shared))
