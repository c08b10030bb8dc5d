"""The gate: thresholds, and no regression against the present champion; pure, and what follows from it is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workflows.evaluation.config import GateConfig, Threshold
from workflows.evaluation.figures import number


@dataclass(frozen=True, slots=True)
class Check:
    """One condition with what it was held against."""

    metric: str
    value: float
    bound: str
    """e.g. ">= 0.9", or ">= 0.87 (champion 0.92 of version 3, less 0.05)"."""
    holds: bool

    def __str__(self) -> str:
        shown = "not measured" if math.isnan(self.value) else f"{self.value:.3f}"
        return f"{self.metric} {shown} {'holds' if self.holds else 'misses'} {self.bound}"


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that holds the alias: what it reached on the same items, by name."""

    version: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of a model."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    """What could not be compared, and why."""

    @property
    def passed(self) -> bool:
        """Every check holds."""
        return all(check.holds for check in self.checks)

    @property
    def why(self) -> str:
        """In one line: the checks that miss, or that all hold, and the notes."""
        missed = [str(check) for check in self.checks if not check.holds]
        return "; ".join([*(missed or [f"all {len(self.checks)} checks hold"]), *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        checks = [
            {"metric": c.metric, "value": number(c.value), "bound": c.bound, "holds": c.holds}
            for c in self.checks
        ]
        return {"passed": self.passed, "why": self.why, "checks": checks, "notes": list(self.notes)}


def judge(
    metrics: Mapping[str, float],
    config: GateConfig,
    champion: Champion | None = None,
    notes: tuple[str, ...] = (),
) -> Verdict:
    """Holds `metrics` against the thresholds and, where there is one, against the champion.

    A figure that was not measured misses. A figure that the champion lacks is noted, not held against anybody.
    """
    checks = [_threshold(metrics, threshold) for threshold in config.thresholds]
    said = list(notes)
    for name in config.no_regression if champion else ():
        assert champion is not None
        if name in champion.metrics:
            checks.append(_regression(metrics, name, champion, config.tolerance))
        else:
            said.append(f"champion version {champion.version} has no {name}")
    return Verdict(tuple(checks), tuple(said))


def _threshold(metrics: Mapping[str, float], threshold: Threshold) -> Check:
    value = metrics.get(threshold.metric, math.nan)
    low, high = threshold.at_least, threshold.at_most
    holds = (low is None or value >= low) and (high is None or value <= high) and not math.isnan(value)
    bounds = ([f">= {low:g}"] if low is not None else []) + ([f"<= {high:g}"] if high is not None else [])
    return Check(threshold.metric, value, " and ".join(bounds), holds)


def _regression(metrics: Mapping[str, float], name: str, champion: Champion, tolerance: float) -> Check:
    value, theirs = metrics.get(name, math.nan), champion.metrics[name]
    bound = f">= {theirs - tolerance:.3f} (champion {theirs:.3f} of version {champion.version}, less {tolerance:g})"
    return Check(name, value, bound, value >= theirs - tolerance)
