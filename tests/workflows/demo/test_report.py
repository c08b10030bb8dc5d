"""The report page: parsed back as HTML and looked at as a reader would."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from workflows import chart
from workflows.chart import Curve
from workflows.demo import page
from workflows.demo.report import Exhibit, Insertion, Metric, Picture, Report, Stage, write


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED = png((200, 20, 20))
REPORT = Report(
    title="OneFlow demo",
    model="models:/oneflow-shapes@champion",
    run_id="0123abcd",
    corpus_version="v-42",
    stages=(Stage("corpus", 3.5, "200 documents"), Stage("train", 75.2)),
    metrics=(
        Metric("colour", 0.93, {"chance": 1 / 6}, ">= 0.9", True),
        Metric("length ratio", math.nan, {}, "0.9 to 1.1", False),
        Metric("pair", 0.5, {"shuffled": 0.2}, interval=(0.4, 0.625), count=37, group="Unseen pairs"),
    ),
    exhibits=(
        Exhibit(
            "image",
            ("a red <script>alert(1)</script> circle",),
            (Picture(RED, "a red square & more"),),
            "right",
            True,
        ),
        Exhibit("caption", (Picture(RED, "given"),), ("a red circle",), "wrong", False),
    ),
    insertions=(Insertion("a ", 0.5), Insertion("red ", 0.1), Insertion("circle", 1.0)),
    curves=(Curve("loss", tuple((i, 100.0 / (i + 1)) for i in range(1000))),),
    peak_memory_bytes=3 << 30,
    promoted=True,
)


class Reader(HTMLParser):
    """Collects tags and text, and fails on a tag that is closed out of turn."""

    VOID = frozenset({"meta", "img", "line", "circle", "path", "br"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def read() -> Reader:
    reader = Reader()
    reader.feed(page.render(REPORT))
    assert reader.open == []
    return reader


def test_page_asks_for_nothing_from_outside(read: Reader) -> None:
    html = page.render(REPORT)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    for tag, attributes in read.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))


def test_pictures_are_whole_and_have_words(read: Reader) -> None:
    images = [a for tag, a in read.tags if tag == "img"]
    assert [a["alt"] for a in images] == ["a red square & more", "given"]
    assert all(base64.b64decode(str(a["src"]).split(",")[1]) == RED for a in images)


def test_what_comes_from_outside_is_text(read: Reader) -> None:
    assert "a red <script>alert(1)</script> circle" in read.text


def test_links_lead_to_sections(read: Reader) -> None:
    ids = {a["id"] for _, a in read.tags if "id" in a}
    links = {str(a["href"])[1:] for tag, a in read.tags if tag == "a"}
    assert links == {"image", "caption", "order", "curves", "metrics", "stages"} <= ids


def test_text_is_shown_whole_and_as_it_grew(read: Reader) -> None:
    assert "a red circle" in read.text
    rows = [page.snapshot(REPORT.insertions, t) for t in (0.0, 0.25, 0.5, 1.0)]
    assert rows == ["", "red ", "a red ", "a red circle"]


def test_figures_stand_in_both_files(tmp_path: Path, read: Reader) -> None:
    where = write(REPORT, tmp_path / "new" / "folder")
    data = json.loads((where.parent / "report.json").read_text())
    assert [s["name"] for s in data["stages"]] == ["corpus", "train"]
    assert data["stages"][1]["seconds"] == 75.2
    assert data["metrics"] == {"colour": 0.93, "length ratio": None, "pair": 0.5}
    assert (data["model"], data["run_id"], data["corpus_version"]) == (REPORT.model, "0123abcd", "v-42")
    assert data["gate"][1] == {
        "metric": "length ratio",
        "value": None,
        "threshold": "0.9 to 1.1",
        "holds": False,
    }
    for shown in (
        "0.93",
        "0.167",
        "1 min 15 s",
        "3.0 GiB",
        "0.4 to 0.625",
        "Unseen pairs",
        "v-42",
        "✗ missed",
    ):
        assert shown in read.text
    assert sorted(p.name for p in where.parent.iterdir()) == ["index.html", "report.json"]


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("at", [i / 8 for i in range(9)])
def test_ink_stands_out_from_every_shade(at: float) -> None:
    for back, ink in zip(page.ramp(at), ("#1d232b", "#e7eaee"), strict=True):
        light, dark = sorted((luminance(back), luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(FINITE | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=400))
def test_every_curve_is_drawn_inside_its_frame(values: list[float]) -> None:
    drawn = chart.line_chart(Curve("x < y", tuple(enumerate(values))))
    root = ET.fromstring(drawn)
    if not any(math.isfinite(v) for v in values):
        assert root.tag == "p"
        return
    line = next(e for e in root.iter() if e.get("class") == "line")
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", str(line.get("d")))]
    assert all(chart.LEFT - 0.1 <= x <= chart.WIDTH - chart.RIGHT + 0.1 for x in numbers[::2])
    assert all(chart.TOP - 0.1 <= y <= chart.HEIGHT - chart.BOTTOM + 0.1 for y in numbers[1::2])
    assert len(numbers) // 2 == len(
        chart.thin([(i, v) for i, v in enumerate(values) if math.isfinite(v)], 300)
    )


@given(st.lists(FINITE, min_size=1, max_size=2000), st.integers(1, 300))
def test_thinning_keeps_the_mean_and_the_end(values: list[float], most: int) -> None:
    thinned = chart.thin(list(enumerate(values)), most)
    assert len(thinned) <= most or len(values) <= most
    assert thinned[-1][0] == len(values) - 1
    assert (
        min(values) - 1e-6 <= min(v for _, v in thinned) <= max(v for _, v in thinned) <= max(values) + 1e-6
    )


def test_durations_read_as_people_write_them() -> None:
    assert [page.duration(s) for s in (4.31, 59.9, 75.2, 3600)] == [
        "4.3 s",
        "59.9 s",
        "1 min 15 s",
        "60 min 00 s",
    ]
