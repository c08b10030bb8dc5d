"""What a run shows of itself, as data; `write` puts it down as one page and one JSON object."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workflows.chart import Curve

PAGE = "index.html"
FIGURES = "report.json"

ExhibitKind = Literal["image", "caption", "answer", "story"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG and the words that stand for it where it cannot be seen."""

    png: bytes
    alt: str


Part = str | Picture


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One piece of the gallery: what the model was given, what it made, and what the checker says of it."""

    kind: ExhibitKind
    given: tuple[Part, ...]
    made: tuple[Part, ...]
    verdict: str = ""
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Insertion:
    """A piece of a finished text and the time in [0, 1] at which the model put it there."""

    text: str
    time: float


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure beside what it is to be judged by.

    `threshold` reads like `>= 0.9`; `interval` holds 95%; `group` is a table of its own, "" the first.
    """

    name: str
    value: float
    controls: Mapping[str, float] = field(default_factory=dict)
    threshold: str = ""
    holds: bool | None = None
    interval: tuple[float, float] | None = None
    count: int | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the line: its name, how long it took in seconds, and what came of it in a few words."""

    name: str
    seconds: float
    result: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows. `facts` are further lines of text: machine, versions, command."""

    title: str
    model: str
    run_id: str
    corpus_version: str
    stages: tuple[Stage, ...]
    metrics: tuple[Metric, ...]
    exhibits: tuple[Exhibit, ...] = ()
    insertions: tuple[Insertion, ...] = ()
    curves: tuple[Curve, ...] = ()
    peak_memory_bytes: int | None = None
    promoted: bool | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    def finished(self, stages: Sequence[Stage], peak_memory_bytes: int) -> Report:
        """The same with what is known only at the end."""
        return replace(self, stages=tuple(stages), peak_memory_bytes=peak_memory_bytes)

    def to_json(self) -> dict[str, Any]:
        """The figures without the pictures; values that are no number become null."""
        return {
            "title": self.title,
            "model": self.model,
            "run_id": self.run_id,
            "corpus_version": self.corpus_version,
            "promoted": self.promoted,
            "peak_memory_bytes": self.peak_memory_bytes,
            "seconds": sum(s.seconds for s in self.stages),
            "stages": [{"name": s.name, "seconds": s.seconds, "result": s.result} for s in self.stages],
            "metrics": {m.name: _number(m.value) for m in self.metrics},
            "controls": {
                m.name: {k: _number(v) for k, v in m.controls.items()} for m in self.metrics if m.controls
            },
            "gate": [
                {"metric": m.name, "value": _number(m.value), "threshold": m.threshold, "holds": m.holds}
                for m in self.metrics
                if m.threshold
            ],
            "facts": dict(self.facts),
        }


def write(report: Report, directory: Path) -> Path:
    """Writes `index.html`, then `report.json`, each whole or not at all; returns the page's path."""
    from workflows.demo.page import render

    directory.mkdir(parents=True, exist_ok=True)
    page = directory / PAGE
    _replace(page, render(report))
    _replace(directory / FIGURES, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    return page


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
