"""The report as one HTML page that needs nothing else: pictures inside, no script, no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from workflows.chart import line_chart
from workflows.demo.report import Exhibit, Insertion, Part, Picture, Report
from workflows.templates import templates

SHADES = 9
SNAPSHOTS = (0.25, 0.5, 0.75, 1.0)

SECTIONS: dict[str, tuple[str, str]] = {
    "image": ("Prompts and images", "The model was given the words and made the picture."),
    "caption": ("Images and captions", "The model was given the picture and wrote the words."),
    "answer": ("Questions and answers", "The model was given a picture and a question."),
    "story": ("An interleaved story", "The model was given the opening and wrote and drew the rest."),
}
_LIGHT = ((255, 226, 138), (158, 224, 190), (140, 182, 245))
_DARK = ((98, 74, 0), (10, 88, 66), (34, 72, 150))


def render(report: Report) -> str:
    """The whole page. All that comes from outside is escaped."""
    environment = templates(Path(__file__).parent)
    environment.filters["data_uri"] = data_uri
    environment.filters["duration"] = duration
    environment.filters["figure"] = lambda v: f"{v:.3g}"
    environment.tests["picture"] = lambda part: isinstance(part, Picture)
    return environment.get_template("template.html").render(
        report=report,
        sections=[(k, *SECTIONS[k], exhibits) for k, exhibits in by_kind(report.exhibits).items()],
        groups={g: [m for m in report.metrics if m.group == g] for g in _groups(report)},
        controls=sorted({name for m in report.metrics for name in m.controls}),
        charts=[(c.name, line_chart(c)) for c in report.curves],
        pieces=[(p.text, p.time, shade(p.time)) for p in report.insertions],
        snapshots=[(t, snapshot(report.insertions, t)) for t in SNAPSHOTS],
        shades=[(i, *ramp(i / (SHADES - 1))) for i in range(SHADES)],
        total=sum(s.seconds for s in report.stages),
    )


def _groups(report: Report) -> list[str]:
    return list(dict.fromkeys(["", *(m.group for m in report.metrics)]))


def by_kind(exhibits: Sequence[Exhibit]) -> dict[str, list[Exhibit]]:
    """The exhibits in the order of the page's sections; a section without any is left out."""
    found = {kind: [e for e in exhibits if e.kind == kind] for kind in SECTIONS}
    return {kind: some for kind, some in found.items() if some}


def data_uri(part: Part) -> str:
    """A picture as a `data:` URI."""
    if not isinstance(part, Picture):
        raise TypeError(f"{part!r:.60} is not a picture")
    return "data:image/png;base64," + base64.b64encode(part.png).decode("ascii")


def duration(seconds: float) -> str:
    """`75.2` as `1 min 15 s`, `4.31` as `4.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def shade(time: float) -> int:
    """The colour class of a time in [0, 1]."""
    return min(SHADES - 1, max(0, round(time * (SHADES - 1))))


def snapshot(insertions: Sequence[Insertion], time: float) -> str:
    """The text as it stood at `time`, gaps closed: what the network saw."""
    return "".join(p.text for p in insertions if p.time <= time + 1e-9)


def ramp(at: float) -> tuple[str, str]:
    """The colour at `at` in [0, 1] behind dark ink (light theme) and behind light ink (dark theme)."""
    return _mix(_LIGHT, at), _mix(_DARK, at)


def _mix(stops: Sequence[tuple[int, int, int]], at: float) -> str:
    left = min(int(at * 2), 1)
    share = at * 2 - left
    mixed = (round(a + (b - a) * share) for a, b in zip(stops[left], stops[left + 1], strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)
