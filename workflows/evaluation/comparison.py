"""Two models on the same items: how their figures differ, and whether that is more than chance."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oneflow_core.metrics.interval import Estimate
from oneflow_core.metrics.paired import Pairs, holm
from workflows.evaluation.config import CompareConfig
from workflows.evaluation.figures import Better, Figure, number
from workflows.evaluation.scores import Scores, pairs_of

NONE = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both models."""

    name: str
    ours: float
    theirs: float
    better: Better = "higher"
    difference: Estimate = NONE
    """Ours less theirs with its interval, over `count` items; NaN where it cannot be tested."""
    p: float = math.nan
    p_holm: float = math.nan
    """Corrected for all figures of the comparison."""
    test: str = ""
    reason: str = ""
    """Why it cannot be tested; empty where it can."""

    def said(self, alpha: float) -> str:
        """better, worse, or that nothing can be said."""
        if self.reason:
            return f"not testable: {self.reason}"
        if not self.p_holm <= alpha:
            return "no difference shown"
        return "better" if (self.difference.value > 0) == (self.better == "higher") else "worse"

    def to_json(self, alpha: float) -> dict[str, Any]:
        """Plain JSON."""
        found = self.difference
        return {
            "ours": number(self.ours),
            "theirs": number(self.theirs),
            "better": self.better,
            "difference": number(found.value),
            "low": number(found.low),
            "high": number(found.high),
            "count": found.count,
            "p": number(self.p),
            "p_holm": number(self.p_holm),
            "test": self.test,
            "said": self.said(alpha),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures of one model less those of another, `against`."""

    model: Mapping[str, str]
    against: Mapping[str, str]
    rows: Sequence[Difference]
    alpha: float

    @property
    def correction(self) -> str:
        """How p-values are corrected."""
        return f"Holm over {sum(not row.reason for row in self.rows)} figures"

    @property
    def file_stem(self) -> str:
        """Names the files of this comparison, so that one against another model does not replace it."""
        told = "-".join(filter(None, (self.against.get("name", ""), self.against.get("version", ""))))
        return "comparison-" + (re.sub(r"[^A-Za-z0-9._-]+", "_", told).strip("_") or "other")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "model": dict(self.model),
            "against": dict(self.against),
            "alpha": self.alpha,
            "correction": self.correction,
            "figures": {row.name: row.to_json(self.alpha) for row in self.rows},
        }

    def write(self, directory: Path) -> None:
        """Writes it into `directory` as JSON and as a plot."""
        told = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        (directory / f"{self.file_stem}.json").write_text(told + "\n", encoding="utf-8")
        (directory / f"{self.file_stem}.png").write_bytes(plot(self))

    def lines(self) -> list[str]:
        """A table for people."""
        head = ("figure", "ours", "theirs", "difference", "95 % interval", "p", "p (Holm)", "")
        body = [self._cells(row) for row in self.rows]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        rows = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in (head, *body)
        ]
        return [f"against {told(self.against)}, {self.correction}, alpha {self.alpha:g}", *rows]

    def _cells(self, row: Difference) -> tuple[str, ...]:
        numbers = (f"{row.ours:.3f}", f"{row.theirs:.3f}")
        if row.reason:
            return (row.name, *numbers, *([""] * 4), row.said(self.alpha))
        d = row.difference
        interval = f"[{d.low:+.3f}, {d.high:+.3f}]"
        return (
            row.name,
            *numbers,
            f"{d.value:+.3f}",
            interval,
            f"{row.p:.2g}",
            f"{row.p_holm:.2g}",
            row.said(self.alpha),
        )


def told(model: Mapping[str, str]) -> str:
    """A model's name and version for people."""
    version = model.get("version", "")
    return f"{model.get('name') or 'a model'}{f' version {version}' if version else ''}"


def compare(
    ours: Scores,
    theirs: Scores,
    figures: Mapping[str, Figure],
    scenes: Mapping[str, str],
    config: CompareConfig,
) -> Comparison:
    """Compares the figures that `config` names, or all that either has; `figures` are ours, `scenes` those of items."""
    names = config.figures or list(dict.fromkeys([*ours.figures, *theirs.figures]))
    rows = [_difference(name, figures.get(name), ours, theirs, scenes) for name in names]
    corrected = holm({row.name: row.p for row in rows if not row.reason})
    rows = [replace(row, p_holm=corrected.get(row.name, math.nan)) for row in rows]
    return Comparison(ours.model, theirs.model, rows, config.alpha)


def plot(comparison: Comparison) -> bytes:
    """The differences with their intervals as a PNG; what is better lies to the right."""
    from matplotlib.figure import Figure as Drawing

    rows = [row for row in reversed(comparison.rows) if not row.reason]
    drawing = Drawing(figsize=(9, 1.5 + 0.24 * len(rows)), layout="constrained")
    axes = drawing.subplots()
    axes.axvline(0, color="grey", linewidth=1)
    colours = {"better": "tab:green", "worse": "tab:red"}
    for place, row in enumerate(rows):
        d, sign = row.difference, 1 if row.better == "higher" else -1
        colour = colours.get(row.said(comparison.alpha), "tab:grey")
        axes.plot([sign * d.low, sign * d.high], [place, place], color=colour, linewidth=2)
        axes.plot([sign * d.value], [place], "o", color=colour, markersize=4)
    names = [row.name + (" (less is better)" if row.better == "lower" else "") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_ylim(-1, len(rows))
    axes.set(xlabel="difference, better to the right; 95 % paired bootstrap interval")
    title = f"{told(comparison.model)} less {told(comparison.against)}; coloured: {comparison.correction}"
    axes.set_title(title, fontsize=8, loc="left")
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _difference(
    name: str, figure: Figure | None, ours: Scores, theirs: Scores, scenes: Mapping[str, str]
) -> Difference:
    mine, other = (side.figures[name].value if name in side.figures else math.nan for side in (ours, theirs))
    row = Difference(name, mine, other, figure.better if figure else "higher")
    pairs = pairs_of(name, figure, ours, theirs, scenes)
    if not isinstance(pairs, Pairs):
        return replace(row, reason=pairs)
    tested = pairs.test()
    return replace(row, difference=pairs.difference(), p=tested.p, test=tested.test)
