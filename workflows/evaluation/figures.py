"""Figures of an evaluation: estimates by name, with the controls that stand beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.interval import RESAMPLES, Estimate, mean
from oneflow_core.shapes import SPLITS, Split
from workflows.evaluation.item import Item, Output

MAIN_SPLIT: Split = "heldout_random"
"""Figures of this split bear the plain name; those of another end in its name."""
REPORTED = tuple(split for split in SPLITS if split != "train")


Better = Literal["higher", "lower"]
Combine = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, its interval, and its controls (chance, shuffled, no_prompt) by name."""

    estimate: Estimate
    controls: Mapping[str, float] = field(default_factory=dict)
    better: Better = "higher"
    """Which way is an improvement."""
    resamples: int = RESAMPLES
    """Of the interval's bootstrap."""
    per_item: bool = True
    """Whether single items have a score of it."""
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    """What each item gives to it, by its id; empty where that is the score of the figure's own name."""
    combine: Combine | None = None
    """The figure of items drawn with repetition, from their parts [items, parts]; None is the mean of one part."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without the parts; what is no number is null."""
        numbers = {"value": self.estimate.value, "low": self.estimate.low, "high": self.estimate.high}
        return {
            **{name: number(value) for name, value in numbers.items()},
            "count": self.estimate.count,
            "controls": {name: number(value) for name, value in self.controls.items()},
            "better": self.better,
            "resamples": self.resamples,
            "per_item": self.per_item,
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """Items with their outputs and scores, one beside the other."""

    items: Sequence[Item]
    outputs: Sequence[Output]
    scores: Sequence[Mapping[str, float]]
    readings: Sequence[Any]
    """The outputs as the suite understood them."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """By what rules, judges and data the scores came to be."""
    notes: Sequence[str] = ()
    """What should be known of them: bad rows, items on which a judge failed."""
    context: Any = None
    """What the suite's figures need beside the scores."""

    def where(self, task: str, split: str, control: str = "", detail: str = "") -> Judged:
        """Those of a task (or of all tasks below it), a split and a control; "" as `detail` takes all."""
        chosen = [
            i
            for i, item in enumerate(self.items)
            if (item.task == task or item.task.startswith(f"{task}/"))
            and (item.split, item.control) == (split, control)
            and detail in ("", item.detail)
        ]
        return replace(
            self,
            items=[self.items[i] for i in chosen],
            outputs=[self.outputs[i] for i in chosen],
            scores=[self.scores[i] for i in chosen],
            readings=[self.readings[i] for i in chosen],
        )

    def mean(self, score: str) -> Estimate:
        """The mean of a score over the items that have it."""
        having = self._having(score)
        return mean([value for _, value in having], [item.scene for item, _ in having])

    def figure(self, score: str, controls: Mapping[str, float] | None = None) -> Figure:
        """That mean as a figure that knows what each item gave to it."""
        parts = {item.id: (value,) for item, value in self._having(score)}
        return Figure(self.mean(score), controls or {}, parts=parts)

    def _having(self, score: str) -> list[tuple[Item, float]]:
        rows = zip(self.items, self.scores, strict=True)
        return [(item, scores[score]) for item, scores in rows if score in scores]


def named(name: str, split: str) -> str:
    """The name of a figure in a split."""
    return name if split == MAIN_SPLIT else f"{name}/{split}"


def number(value: float) -> float | None:
    """`value`, or None where it is no finite number."""
    return float(value) if math.isfinite(value) else None
