"""What each item gave to each figure: what a later evaluation is compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.paired import Pairs
from workflows.evaluation.figures import Better, Figure, Judged, number
from workflows.evaluation.report import EvaluationReport

SCORES = "scores.json"
CLOSE = 1e-6
"""How near a figure must be to what its items give, relatively, for the items to stand for it."""


@dataclass(frozen=True, slots=True)
class Score:
    """A figure's value, and what each item gave to it by its id; no parts where it has none."""

    value: float
    better: Better
    parts: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Every figure of one evaluation. Two compare only where `suite` and `digest` are equal."""

    suite: str
    digest: str
    model: Mapping[str, str]
    figures: Mapping[str, Score]

    @classmethod
    def of(cls, report: EvaluationReport) -> Scores:
        """Those of a report."""
        figures = {
            name: Score(figure.estimate.value, figure.better, _parts(name, figure, report.judged))
            for name, figure in report.figures.items()
        }
        return cls(report.suite, report.digest, dict(report.model), figures)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which `from_json` reads."""
        figures = {
            name: {
                "value": number(s.value),
                "better": s.better,
                "parts": {k: list(v) for k, v in s.parts.items()},
            }
            for name, s in self.figures.items()
        }
        return {"suite": self.suite, "digest": self.digest, "model": dict(self.model), "figures": figures}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Scores:
        """What `to_json` told of; KeyError, TypeError or ValueError where it is no such thing."""
        figures = {
            str(name): Score(
                math.nan if s["value"] is None else float(s["value"]),
                "lower" if s["better"] == "lower" else "higher",
                {str(k): [float(x) for x in v] for k, v in s["parts"].items()},
            )
            for name, s in tree["figures"].items()
        }
        return cls(str(tree["suite"]), str(tree["digest"]), dict(tree["model"]), figures)

    def write(self, directory: Path) -> None:
        """Writes scores.json into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SCORES).write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")


def pairs_of(
    name: str, figure: Figure | None, ours: Scores, theirs: Scores, scenes: Mapping[str, str]
) -> Pairs | str:
    """The figure of both over the items that both have, or why there is none. `scenes` are the items' by id."""
    if name not in ours.figures or name not in theirs.figures or figure is None:
        return "only one of the two has it"
    mine, other = ours.figures[name].parts, theirs.figures[name].parts
    if not mine or not other:
        return "no items give a score to it, and its suite names no parts to resample"
    ids = [item for item in mine if item in other]
    if not ids:
        return "the two have no items in common"
    widths = {len(side[item]) for side in (mine, other) for item in ids}
    if len(widths) > 1:
        return "its parts are not those of the other's suite"
    for scores, side in ((ours.figures[name], mine), (theirs.figures[name], other)):
        if not _stands_for(scores.value, _array(side, list(side)), figure):
            return "its items do not add up to it"
    groups = [scenes.get(item) or item for item in ids]
    return Pairs(_array(mine, ids), _array(other, ids), groups, figure.combine)


def _parts(name: str, figure: Figure, judged: Judged) -> Mapping[str, Sequence[float]]:
    """The figure's own, or the score of its name; none where one of them is no number."""
    rows = zip(judged.items, judged.scores, strict=True)
    parts = figure.parts or {item.id: (scores[name],) for item, scores in rows if name in scores}
    return parts if all(math.isfinite(x) for values in parts.values() for x in values) else {}


def _array(parts: Mapping[str, Sequence[float]], ids: Sequence[str]) -> NDArray[np.float64]:
    return np.array([parts[item] for item in ids], float)


def _stands_for(value: float, parts: NDArray[np.float64], figure: Figure) -> bool:
    if figure.combine is None and parts.shape[1] != 1:
        return False
    found = parts.mean() if figure.combine is None else figure.combine(parts)
    return bool(abs(found - value) <= CLOSE * max(1.0, abs(value)))
