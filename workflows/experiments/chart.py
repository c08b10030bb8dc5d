"""A metric against one key of a sweep, as an SVG; colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
WIDE = 20.0
"""Positive values that span more than this factor stand on a logarithmic axis."""


def scatter(key: str, metric: str, points: Sequence[tuple[Any, float, str]]) -> Markup:
    """An `<svg>` of `points` (value, score, state), with axes, ticks and a title for screen readers.

    Values that are no numbers stand side by side, in the order of their first appearance.
    """
    if not points:
        return Markup("<p>{}: no trial has a score yet</p>").format(key)
    places, ticks = _axis([value for value, _, _ in points])
    scores = [score for _, score, _ in points]
    low, high = _padded(scores)
    label = f"{metric} against {key}: {len(points)} trials, {min(scores):.4g} to {max(scores):.4g}"
    spots = [
        f'<circle class="{escape(state)}" cx="{_x(place):.1f}" cy="{_y(score, low, high):.1f}" r="4">'
        f"<title>{escape(f'{key} = {value}: {score:.4g} ({state})')}</title></circle>"
        for place, (value, score, state) in zip(places, points, strict=True)
    ]
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        f"<title>{escape(label)}</title>",
        *(_across(_y(value, low, high), f"{value:.4g}") for value in (min(scores), max(scores))),
        *(_mark(_x(place), text) for place, text in ticks),
        f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(key)}</text>',
        *spots,
        "</svg>",
    ]
    return Markup("\n".join(lines))


def _axis(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each value stands, 0 to 1, and the ticks."""
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        names = list(dict.fromkeys(str(v) for v in values))
        at = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        return [at[str(v)] for v in values], [(place, name) for name, place in at.items()]
    log = min(values) > 0 and max(values) / min(values) >= WIDE
    scaled = [math.log10(v) if log else float(v) for v in values]
    low, high = _padded(scaled)
    ends = sorted(
        {(scaled[i], values[i]) for i in range(len(values)) if scaled[i] in (min(scaled), max(scaled))}
    )
    ticks = [
        ((s - low) / (high - low), f"{v:.3g}" + (" (log)" if log and v == max(values) else ""))
        for s, v in ends
    ]
    return [(s - low) / (high - low) for s in scaled], ticks


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or max(abs(high), 1e-9) * 0.1
    return low - room, high + room


def _x(place: float) -> float:
    return LEFT + place * (WIDTH - LEFT - RIGHT)


def _y(score: float, low: float, high: float) -> float:
    return TOP + (high - score) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _across(y: float, label: str) -> str:
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="left" x="{LEFT - 6}" y="{y + 3:.1f}">{label}</text>'
    )


def _mark(x: float, label: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{escape(label)}</text>'
