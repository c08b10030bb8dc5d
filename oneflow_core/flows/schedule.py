"""Kappa schedules and birth times: when an element of a document comes to be (METHOD 1.1, 3.2, 3.3).

An element with birth time b is present iff the text clock tau has passed b. `kappa(t)` is the probability that
it is present at time t, so b = kappa^-1(u) with u uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Schedule(Protocol):
    """A strictly increasing map of [0, 1] onto itself with its derivative and inverse in closed form."""

    def kappa(self, t: FloatArray) -> FloatArray:
        """Probability that an element is present at time t."""
        ...

    def derivative(self, t: FloatArray) -> FloatArray:
        """d kappa / dt."""
        ...

    def inverse(self, u: FloatArray) -> FloatArray:
        """The time t at which kappa(t) = u."""
        ...


@dataclass(frozen=True)
class Linear:
    """kappa(t) = t, the paper's choice (section 2.1)."""

    def kappa(self, t: FloatArray) -> FloatArray:
        """t itself."""
        return t

    def derivative(self, t: FloatArray) -> FloatArray:
        """1 everywhere."""
        return np.ones_like(t)

    def inverse(self, u: FloatArray) -> FloatArray:
        """u itself."""
        return u


@dataclass(frozen=True)
class Power:
    """kappa(t) = t^exponent (paper B.6, Fig. 22; Edit Flows used 3)."""

    exponent: float

    def kappa(self, t: FloatArray) -> FloatArray:
        """t^k."""
        return t**self.exponent

    def derivative(self, t: FloatArray) -> FloatArray:
        """k t^(k-1)."""
        return self.exponent * t ** (self.exponent - 1)

    def inverse(self, u: FloatArray) -> FloatArray:
        """u^(1/k)."""
        return u ** (1 / self.exponent)


@dataclass(frozen=True)
class Cosine:
    """kappa(t) = 1 - cos(pi t / 2): slow at first, fast at the end."""

    def kappa(self, t: FloatArray) -> FloatArray:
        """1 - cos(pi t / 2)."""
        return 1 - np.cos(np.pi / 2 * t)

    def derivative(self, t: FloatArray) -> FloatArray:
        """(pi/2) sin(pi t / 2)."""
        return np.pi / 2 * np.sin(np.pi / 2 * t)

    def inverse(self, u: FloatArray) -> FloatArray:
        """(2/pi) arccos(1 - u)."""
        return 2 / np.pi * np.arccos(1 - u)


def build_schedule(name: str) -> Schedule:
    """`linear`, `cosine` or `power:<exponent>`.

    Raises:
        ValueError: an unknown name, or an exponent that is not above 0.
    """
    kind, _, value = name.partition(":")
    if kind == "linear" and not value:
        return Linear()
    if kind == "cosine" and not value:
        return Cosine()
    if kind == "power" and value.replace(".", "", 1).isdigit() and float(value) > 0:
        return Power(float(value))
    raise ValueError(f"schedule {name!r} is none of: linear, cosine, power:<exponent above 0>")


def hazard(schedule: Schedule, t: FloatArray) -> FloatArray:
    """kappa' / (1 - kappa): the rate at which each missing element arrives at time t; infinite at t = 1."""
    left = 1 - schedule.kappa(t)
    return np.where(left > 0, schedule.derivative(t) / np.where(left > 0, left, 1.0), np.inf)


def arrival_probability(schedule: Schedule, t: FloatArray, h: FloatArray) -> FloatArray:
    """rho = (kappa(t+h) - kappa(t)) / (1 - kappa(t)): that a missing element arrives within [t, t+h] (METHOD 7.4).

    For the linear schedule this equals h kappa'/(1 - kappa) exactly; for others it stays right at large h.
    1 where t + h reaches 1.
    """
    now, then = schedule.kappa(t), schedule.kappa(np.minimum(1.0, t + h))
    left = 1 - now
    return np.where(left > 1e-12, np.clip((then - now) / np.maximum(left, 1e-12), 0.0, 1.0), 1.0)


def draw_births(schedule: Schedule, count: int, rng: np.random.Generator) -> FloatArray:
    """Birth times of `count` elements, each kappa^-1(u) with u ~ U[0, 1)."""
    return schedule.inverse(rng.random(count))


def image_times(clock: float, births_I: FloatArray) -> FloatArray:
    """Times of images on the interleaved schedule: tau_img = tau_text - b, below 0 while absent, at most 1 (3.2)."""
    return np.minimum(1.0, clock - births_I)


def logit_normal(mean: float, std: float, count: int, rng: np.random.Generator) -> FloatArray:
    """`count` times sigmoid(N(mean, std^2)) in (0, 1); a mean below 0 favours noise (t = 1 is data)."""
    return 1 / (1 + np.exp(-(mean + std * rng.standard_normal(count))))
