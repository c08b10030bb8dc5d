"""A comparison as one HTML page that needs nothing else: the curves laid over each other, and what differs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflows.chart import HUES, Curve, overlay
from workflows.runs.comparison import Comparison
from workflows.runs.curves import AXES, Axis
from workflows.runs.record import FIRST, Record
from workflows.runs.table import PLACES, data_rows, short
from workflows.templates import templates

PAGE = "index.html"
FIGURES = "comparison.json"
TITLES: dict[Axis, str] = {
    "step": "over steps",
    "tokens": "over tokens",
    "seconds": "over seconds of training",
}
GROUPS = ("heldout/", "train/")


def render(comparison: Comparison) -> str:
    """The whole page; all that comes from outside is escaped."""
    environment = templates(Path(__file__).parent)
    environment.filters["short"] = short
    return environment.get_template("page.html").render(
        comparison=comparison,
        hues=[number % HUES for number in range(len(comparison.records))],
        sections=[(axis, title, charts(comparison.records, axis)) for axis, title in TITLES.items()],
        tables=tables(comparison),
    )


def charts(records: Sequence[Record], axis: Axis) -> list[tuple[str, str]]:
    """Name and SVG of each metric that is compared; held-out losses first."""
    names = {name for record in records for name in record.histories.points if name.startswith(GROUPS)}
    found = []
    for name in sorted(names, key=lambda name: (name != FIRST, not name.startswith(GROUPS[0]), name)):
        curves = [Curve(r.name, r.histories.over(name, axis)) for r in records]
        found.append(
            (name, overlay(name, curves, {"step": "step", "tokens": "tokens", "seconds": "s"}[axis]))
        )
    return found


def tables(comparison: Comparison) -> dict[str, Mapping[str, Sequence[Any]]]:
    """Title -> rows, as the terminal has them."""
    equal = {
        f"Held-out losses at {PLACES[axis].format(place)}": values
        for axis in AXES
        for place, values in [comparison.equal[axis]]
        if values
    }
    found: dict[str, Mapping[str, Sequence[Any]]] = {
        "Results": comparison.results,
        **equal,
        "Evaluation": comparison.evaluations,
        "Config": comparison.config,
        "Data": data_rows(comparison.data),
        "Code": comparison.code,
        "Environment": comparison.environment,
    }
    return {title: rows for title, rows in found.items() if rows}
