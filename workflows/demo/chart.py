"""A metric's history as a small SVG line chart; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from workflows.demo.report import Curve

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 26
MOST_POINTS = 300


def line_chart(curve: Curve) -> str:
    """An `<svg>` with axes, ticks, the line, and a title for screen readers.

    Points that are not finite are left out. A curve of positive values that spans more than a
    factor of 20 gets a logarithmic axis, and says so.
    """
    points = thin([(s, v) for s, v in curve.points if math.isfinite(v)], MOST_POINTS)
    if not points:
        return f'<p class="quiet">{escape(curve.name)}: nothing was logged</p>'
    values = [v for _, v in points]
    log = min(values) > 0 and max(values) / min(values) > 20
    scaled = [math.log10(v) if log else v for v in values]
    low, high = _padded(min(scaled), max(scaled))
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    spots = [(x(s), y(v)) for (s, _), v in zip(points, scaled, strict=True)]
    path = " ".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(spots))
    label = f"{curve.name}: {_at(values[0], points[0][0])} to {_at(values[-1], points[-1][0])}"
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
            f"<title>{escape(label)}</title>",
            *(_across(y(t), _short(10**t if log else t)) for t in _ticks(low, high)),
            _foot(x(first), first, "start"),
            _foot(x(last), last, "end"),
            f'<path class="line" d="{path}"/>',
            f'<circle class="end" cx="{spots[-1][0]:.1f}" cy="{spots[-1][1]:.1f}" r="3"/>',
            _note("log scale" if log else ""),
            "</svg>",
        ]
    )


def thin(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` points: means of equal runs, so that a spike moves the line and no peak is made up."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(run[-1][0], sum(v for _, v in run) / len(run)) for run in runs]


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.05 or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers inside [low, high]."""
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}"


def _at(value: float, step: int) -> str:
    return f"{_short(value)} at step {step}"


def _note(words: str) -> str:
    return f'<text class="tick" x="{WIDTH - RIGHT}" y="{TOP + 8}" text-anchor="end">{words}</text>'


def _across(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{label}</text>'
    )


def _foot(x: float, step: int, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">step {step}</text>'
