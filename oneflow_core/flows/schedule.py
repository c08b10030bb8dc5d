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


@dataclass(frozen=True)
class Table:
    """kappa through `values` at equal steps of t, straight between them: what `flows.adaptive` fits.

    Raises:
        ValueError: values that do not rise strictly from 0 to 1.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = bool(np.all(np.diff(self.values) > 0))
        if len(self.values) < 2 or self.values[0] != 0 or self.values[-1] != 1 or not rising:
            raise ValueError(f"a table of {self.values} must rise strictly from 0 to 1")

    @property
    def name(self) -> str:
        """What `build_schedule` reads back: the values between 0 and 1."""
        return "table:" + ",".join(repr(v) for v in self.values[1:-1])

    @property
    def grid(self) -> FloatArray:
        """The times of the values."""
        return np.linspace(0, 1, len(self.values))

    def kappa(self, t: FloatArray) -> FloatArray:
        """Straight between the values."""
        return np.interp(t, self.grid, self.values)

    def derivative(self, t: FloatArray) -> FloatArray:
        """The slope of the step that t lies in; at its ends that of the later one, at 1 that of the last."""
        slopes = np.diff(self.values) * (len(self.values) - 1)
        return slopes[np.clip(np.searchsorted(self.grid, t, "right") - 1, 0, len(slopes) - 1)]

    def inverse(self, u: FloatArray) -> FloatArray:
        """Straight between the times of the values."""
        return np.interp(u, self.values, self.grid)


def build_schedule(name: str) -> Schedule:
    """`linear`, `cosine`, `power:<exponent>` or `table:<v>,<v>,...`, the values of a `Table` without its 0 and 1.

    Raises:
        ValueError: an unknown name, an exponent that is not above 0, or a table that does not rise from 0 to 1.
    """
    kind, _, value = name.partition(":")
    if kind == "linear" and not value:
        return Linear()
    if kind == "cosine" and not value:
        return Cosine()
    if kind == "power" and value.replace(".", "", 1).isdigit() and float(value) > 0:
        return Power(float(value))
    if kind == "table":
        return Table((0.0, *_numbers(name, value), 1.0))
    raise ValueError(
        f"schedule {name!r} is none of: linear, cosine, power:<exponent above 0>, table:<values of kappa>"
    )


def _numbers(name: str, values: str) -> list[float]:
    try:
        return [float(v) for v in values.split(",")]
    except ValueError:
        raise ValueError(f"schedule {name!r}: its values must be numbers, with commas between") from None


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


def image_times(clock_I: float | FloatArray, births_I: FloatArray) -> FloatArray:
    """Times of images born at `births_I` on their clocks: clock - b, below 0 while absent, at most 1 (METHOD 3.2)."""
    return np.minimum(1.0, clock_I - births_I)


def logit_normal(mean: float, std: float, count: int, rng: np.random.Generator) -> FloatArray:
    """`count` times sigmoid(N(mean, std^2)) in (0, 1); a mean below 0 favours noise (t = 1 is data)."""
    return 1 / (1 + np.exp(-(mean + std * rng.standard_normal(count))))
