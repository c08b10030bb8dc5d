"""The gate: thresholds, and no regression against the present champion; pure, and what follows from it is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from oneflow_core.metrics.paired import Pairs, Tested, holm
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
    evidence: str = ""
    """The difference from the champion and its test, or why there is none."""

    def __str__(self) -> str:
        shown = "not measured" if math.isnan(self.value) else f"{self.value:.3f}"
        evidence = f": {self.evidence}" if self.evidence else ""
        return f"{self.metric} {shown} {'holds' if self.holds else 'misses'} {self.bound}{evidence}"


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that holds the alias: what it reached on the same items, by name."""

    version: str
    metrics: Mapping[str, float]
    pairs: Mapping[str, Pairs | str] = field(default_factory=dict)
    """Figures of both over the same items, or why there are none."""


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
        checks = [asdict(check) | {"value": number(check.value)} for check in self.checks]
        return {"passed": self.passed, "why": self.why, "checks": checks, "notes": list(self.notes)}


def judge(
    metrics: Mapping[str, float],
    config: GateConfig,
    champion: Champion | None = None,
    notes: tuple[str, ...] = (),
    lower: Collection[str] = (),
) -> Verdict:
    """Holds `metrics` against the thresholds and, where there is one, against the champion.

    A figure of `no_regression` misses where it is significantly worse than the champion's by more than the tolerance:
    a one-sided paired test, corrected for all of them (Holm). Without a test it may not be worse by more. Less is
    better for those in `lower`. A figure that was not measured misses. A figure that the champion lacks is noted, not
    held against anybody.
    """
    checks = [_threshold(metrics, threshold) for threshold in config.thresholds]
    if champion is None:
        return Verdict(tuple(checks), notes)
    named = [name for name in config.no_regression if name in champion.metrics]
    said = [f"champion version {champion.version} has no {n}" for n in config.no_regression if n not in named]
    checks += _regressions(metrics, named, config, champion, lower)
    return Verdict(tuple(checks), (*notes, *said))


def _threshold(metrics: Mapping[str, float], threshold: Threshold) -> Check:
    value = metrics.get(threshold.metric, math.nan)
    low, high = threshold.at_least, threshold.at_most
    holds = (low is None or value >= low) and (high is None or value <= high) and not math.isnan(value)
    bounds = ([f">= {low:g}"] if low is not None else []) + ([f"<= {high:g}"] if high is not None else [])
    return Check(threshold.metric, value, " and ".join(bounds), holds)


def _regressions(
    metrics: Mapping[str, float],
    named: Collection[str],
    config: GateConfig,
    champion: Champion,
    lower: Collection[str],
) -> Iterator[Check]:
    tested: dict[str, Tested] = {}
    for name in named:
        pairs = champion.pairs.get(name)
        if isinstance(pairs, Pairs) and name in metrics:
            tested[name] = pairs.test_worse(config.tolerance, "lower" if name in lower else "higher")
    corrected = holm({name: test.p for name, test in tested.items()})
    for name in named:
        value, theirs = metrics.get(name, math.nan), champion.metrics[name]
        less, sign = name in lower, -1 if name in lower else 1
        limit = theirs - sign * config.tolerance
        bound = (
            f"{'<=' if less else '>='} {limit:.3f} (champion {theirs:.3f} of version {champion.version}, "
            f"{'plus' if less else 'less'} {config.tolerance:g})"
        )
        if name in tested:
            evidence = _evidence(champion, tested[name], corrected, name, config)
            yield Check(name, value, bound, corrected[name] > config.alpha, evidence)
        else:
            why = (
                f"no test, {champion.pairs.get(name, 'its items are not stored')}" if name in metrics else ""
            )
            yield Check(name, value, bound, sign * value >= sign * limit, why)


def _evidence(
    champion: Champion, tested: Tested, corrected: Mapping[str, float], name: str, config: GateConfig
) -> str:
    pairs = champion.pairs[name]
    assert isinstance(pairs, Pairs)
    found = pairs.difference()
    return (
        f"difference {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] over {found.count} items, worse by more "
        f"with p {corrected[name]:.2g} ({tested.test}, Holm over {len(corrected)}, alpha {config.alpha:g})"
    )
