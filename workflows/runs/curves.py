"""Metric histories over steps, over tokens and over the seconds that were really trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlflow import MlflowClient

Axis = Literal["step", "tokens", "seconds"]
AXES: tuple[Axis, ...] = ("step", "tokens", "seconds")
STEP_S, TOKENS_PER_S = "speed/step_s", "speed/tokens_per_s"
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Histories:
    """Values of a run's metrics by name: (step, value), steps increasing, a step once."""

    points: Mapping[str, Points]

    def over(self, name: str, axis: Axis) -> Points:
        """The history of `name` with its steps as `axis`; () where nothing was logged."""
        points = self.points.get(name, ())
        if axis == "step" or not points:
            return points
        places = self._clock(axis, np.array([step for step, _ in points]))
        return tuple((float(place), value) for place, (_, value) in zip(places, points, strict=True))

    def last(self, name: str, axis: Axis) -> float:
        """Where along `axis` the last value of `name` stands; 0 where there is none."""
        points = self.over(name, axis)
        return points[-1][0] if points else 0.0

    def at(self, name: str, axis: Axis, place: float) -> float | None:
        """The last value of `name` at `place` or before; None where there is none yet."""
        known = [value for found, value in self.over(name, axis) if found <= place * (1 + 1e-9)]
        return known[-1] if known else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second over all of the run; None where no speed was logged."""
        if STEP_S not in self.points or TOKENS_PER_S not in self.points:
            return None
        seconds = self.last(STEP_S, "seconds")
        return self.last(STEP_S, "tokens") / seconds if seconds else None

    def _clock(self, axis: Axis, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds or tokens up to each of `steps`, out of the mean speeds of what was logged between.

        Time between attempts, and steps that a restart repeats, do not count: they were not logged.
        """
        speeds = dict(self.points.get(TOKENS_PER_S, ()))
        took = [(s, v) for s, v in self.points.get(STEP_S, ()) if axis == "seconds" or s in speeds]
        if not took:
            return np.zeros(len(steps))
        ends = np.array([0.0, *(step for step, _ in took)])
        rates = np.array([v if axis == "seconds" else v * speeds[s] for s, v in took])
        return np.interp(steps, ends, np.concatenate([[0.0], np.cumsum(rates * np.diff(ends))]))


def read(client: "MlflowClient", run_id: str, names: list[str]) -> Histories:
    """The histories of `names`; a step that was logged twice keeps what came last, values that are no number go."""
    found: dict[str, Points] = {}
    for name in names:
        history = sorted(client.get_metric_history(run_id, name), key=lambda m: (m.step, m.timestamp))
        steps = {float(m.step): float(m.value) for m in history}
        found[name] = tuple((s, v) for s, v in sorted(steps.items()) if math.isfinite(v))
    return Histories({name: points for name, points in found.items() if points})
