"""Metric histories as a small SVG line chart; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 26
MOST_POINTS = 300
MOST_TICKS = 6
HUES = 8
"""Colours of curves that are drawn together; they come again where there are more."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric's history: (step, value), steps increasing; the place of a step may be tokens or seconds."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_chart(curve: Curve) -> str:
    """`overlay` of one curve over steps, under its own name."""
    return overlay(curve.name, (curve,))


def overlay(title: str, curves: Sequence[Curve], axis: str = "step") -> str:
    """An `<svg>` with axes, ticks, a line a curve (classes `hue0`, `hue1`, ...), and a title for screen readers.

    Points that are not finite are left out. Positive values that span more than a factor of 20 get a logarithmic
    axis, and the chart says so. `axis` names what the places along it are.
    """
    kept = [thin([(s, v) for s, v in c.points if math.isfinite(v)], MOST_POINTS) for c in curves]
    values = [v for points in kept for _, v in points]
    if not values:
        return f'<p class="quiet">{escape(title)}: nothing was logged</p>'
    log = min(values) > 0 and max(values) / min(values) > 20
    scaled = [math.log10(v) if log else v for v in values]
    low, high = _padded(min(scaled), max(scaled))
    first = min(points[0][0] for points in kept if points)
    last = max(max(points[-1][0] for points in kept if points), first + 1)

    def spot(place: float, value: float) -> tuple[float, float]:
        along = (place - first) / (last - first)
        up = (high - (math.log10(value) if log else value)) / (high - low)
        return LEFT + along * (WIDTH - LEFT - RIGHT), TOP + up * (HEIGHT - TOP - BOTTOM)

    names = [f"{c.name}: " if len(curves) > 1 else "" for c in curves]
    told = [f"{n}{_at(axis, *p[0])} to {_at(axis, *p[-1])}" for n, p in zip(names, kept, strict=True) if p]
    label = f"{title}: {'; '.join(told)}"
    lines = [_line([spot(*p) for p in points], i, len(curves)) for i, points in enumerate(kept) if points]
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
            f"<title>{escape(label)}</title>",
            *(
                _across(
                    TOP + (high - t) / (high - low) * (HEIGHT - TOP - BOTTOM), _short(10**t if log else t)
                )
                for t in (_log_ticks if log else _ticks)(low, high)
            ),
            _foot(LEFT, f"{axis} {_round(first)}", "start"),
            _foot(WIDTH - RIGHT, f"{axis} {_round(last)}", "end"),
            *lines,
            _note("log scale" if log else ""),
            "</svg>",
        ]
    )


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
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
    """Two to six round numbers inside [low, high]."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms inside [low, high] of 1, 2 and 5 times powers of ten, or of some of these powers alone."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    marks = [k + math.log10(m) for k in decades for m in (1, 2, 5) if low <= k + math.log10(m) <= high]
    powers = [float(k) for k in decades if low <= k <= high]
    return marks if len(marks) <= MOST_TICKS else powers[:: math.ceil(len(powers) / MOST_TICKS)]


def _short(value: float) -> str:
    return f"{value:.3g}"


def _round(place: float) -> str:
    return f"{place:.0f}"


def _at(axis: str, place: float, value: float) -> str:
    return f"{_short(value)} at {axis} {_round(place)}"


def _line(spots: Sequence[tuple[float, float]], number: int, of: int) -> str:
    """The line through `spots` and a dot at its end; the only one of a chart has no hue of its own."""
    hue = f" hue{number % HUES}" if of > 1 else ""
    path = " ".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(spots))
    end = f'<circle class="end{hue}" cx="{spots[-1][0]:.1f}" cy="{spots[-1][1]:.1f}" r="3"/>'
    return f'<path class="line{hue}" d="{path}"/>{end}'


def _note(words: str) -> str:
    return f'<text class="tick" x="{WIDTH - RIGHT}" y="{TOP + 8}" text-anchor="end">{words}</text>'


def _across(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{label}</text>'
    )


def _foot(x: float, words: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(words)}</text>'
