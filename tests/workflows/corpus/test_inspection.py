"""Inspect: figures held against the documents themselves, and a page in which nothing comes from elsewhere."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, TextSegment
from oneflow_core.encoders import LatentCodec
from tests.workflows.corpus.written import write_version
from workflows.corpus.inspection import inspect, page, render
from workflows.corpus.inspection.histogram import histogram

HOSTILE = '<script>alert(1)</script>\x1b[31m "quoted" & more'


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec.from_pretrained()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Plain squares, each of its own colour."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (6, 64, 64, 3)).copy()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, codec: LatentCodec, pictures: np.ndarray) -> str:
    latents = codec.encode(pictures).float().numpy().astype(np.float16)
    samples = []
    for n, latent in enumerate(latents):
        text = TextSegment(HOSTILE if n == 0 else "x" * (10 * n), "target" if n == 5 else "auto")
        document = Document(f"s/f/{n}", "s", "MIT", (ImageSegment(f"{n:064x}", 100 + n, 50), text))
        samples.append(Sample(document, (latent,)))
    base = tmp_path_factory.mktemp("inspected") / "c" / "1"
    write_version(base, samples, 2, codec.id)
    return str(base)


def test_figures_are_those_of_the_documents(written: str) -> None:
    found = inspect(written, samples=4, seed=3)
    assert found.indexed == found.opened == 6
    assert found.images == {1: 6} and found.kinds == {"pair": 5, "instruction": 1}
    lengths = sorted([len(HOSTILE), 10, 20, 30, 40, 50])
    text = next(h for h in found.histograms if h.name == "text of a segment")
    assert text.edges[0] == 10 and text.quantiles["max"] == 50 and sum(text.counts) == 6
    assert text.quantiles["p50"] == np.median(lengths)
    chosen = [s.document.doc_id for s in found.samples]
    assert len(set(chosen)) == 4
    assert [s.document.doc_id for s in inspect(written, samples=4, seed=3).samples] == chosen


def test_every_document_is_as_likely_to_be_shown(written: str) -> None:
    drawn = Counter(inspect(written, samples=1, seed=s).samples[0].document.doc_id for s in range(120))
    assert len(drawn) == 6 and max(drawn.values()) < 45


def test_the_terminal_obeys_nothing_of_the_corpus(written: str) -> None:
    shown = render(inspect(written, samples=6))
    assert "6 documents" in shown and "\x1b" not in shown and "[101x50]" in shown


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.sources += [v or "" for k, v in attrs if k in ("src", "href")]


def test_the_page_has_the_pictures_and_nothing_from_elsewhere(written: str, pictures: np.ndarray) -> None:
    found = inspect(written, samples=6)
    text = page(found)
    parsed = Page()
    parsed.feed(text)
    assert parsed.tags["script"] == 0 and parsed.tags["img"] == 6
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    for source, sample in zip(parsed.sources, found.samples, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))), np.float64)
        meant = pictures[int(sample.document.doc_id[-1])].astype(np.float64)
        assert np.abs(shown - meant).mean() < 12


def test_a_page_without_the_right_codec_says_so(tmp_path: Path) -> None:
    latent = np.zeros((4, 2, 2), np.float16)
    document = Document("s/f/1", "s", "MIT", (ImageSegment("0" * 64, 8, 8), TextSegment("a")))
    write_version(tmp_path / "c" / "1", [Sample(document, (latent,))], 2, "other@1")
    text = page(inspect(str(tmp_path / "c" / "1")))
    assert "encoded by other@1" in text and "--codec" in text and "<img" not in text


@given(st.lists(st.integers(0, 10**6) | st.floats(0.01, 1e4), min_size=1))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    found = histogram("n", "u", values)
    assert sum(found.counts) == len(values)
    assert list(found.edges) == sorted(found.edges) and len(found.edges) == len(found.counts) + 1
    assert re.match(r"p5|max", next(iter(found.quantiles)))
