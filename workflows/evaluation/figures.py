"""Figures of an evaluation: estimates by name, with the controls that stand beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oneflow_core.metrics.interval import Estimate, mean
from oneflow_core.shapes import SPLITS
from workflows.evaluation.item import Item, Output

MAIN_SPLIT = "heldout_random"
"""Figures of this split bear the plain name; those of another end in its name."""
REPORTED = tuple(split for split in SPLITS if split != "train")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, its interval, and its controls (chance, shuffled, no_prompt) by name."""

    estimate: Estimate
    controls: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is no number is null."""
        numbers = {"value": self.estimate.value, "low": self.estimate.low, "high": self.estimate.high}
        shown = {name: number(value) for name, value in numbers.items()}
        controls = {name: number(value) for name, value in self.controls.items()}
        return {**shown, "count": self.estimate.count, "controls": controls}


@dataclass(frozen=True, slots=True)
class Judged:
    """Items with their outputs and scores, one beside the other."""

    items: Sequence[Item]
    outputs: Sequence[Output]
    scores: Sequence[Mapping[str, float]]
    readings: Sequence[Any]
    """The outputs as the suite understood them."""

    def where(self, task: str, split: str, control: str = "", detail: str = "") -> Judged:
        """Those of a task (or of all tasks below it), a split and a control; "" as `detail` takes all."""
        chosen = [
            i
            for i, item in enumerate(self.items)
            if (item.task == task or item.task.startswith(f"{task}/"))
            and (item.split, item.control) == (split, control)
            and detail in ("", item.detail)
        ]
        picked = [
            [rows[i] for i in chosen] for rows in (self.items, self.outputs, self.scores, self.readings)
        ]
        return Judged(*picked)  # type: ignore[arg-type]

    def mean(self, score: str) -> Estimate:
        """The mean of a score over the items that have it."""
        having = [
            (scores[score], i.scene)
            for scores, i in zip(self.scores, self.items, strict=True)
            if score in scores
        ]
        return mean([value for value, _ in having], [scene for _, scene in having])


def named(name: str, split: str) -> str:
    """The name of a figure in a split."""
    return name if split == MAIN_SPLIT else f"{name}/{split}"


def number(value: float) -> float | None:
    """`value`, or None where it is no finite number."""
    return float(value) if math.isfinite(value) else None
