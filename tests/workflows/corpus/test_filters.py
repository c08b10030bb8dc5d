"""Filters: against rules written out again here, row by row, and how they are counted."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from oneflow_core.document import ImageSegment
from tests.workflows.corpus.inputs import corpus, jsonl, png, tar
from workflows.corpus import ingest
from workflows.corpus.documents import document_of
from workflows.corpus.filters import (
    FiltersConfig,
    refusal_of_columns,
    refusal_of_image,
    refusal_of_texts,
)
from workflows.corpus.parts import read_part
from workflows.corpus.sources import Draft, Refused
from workflows.corpus.units import Unit, list_units
from workflows.errors import OneFlowError


def filters(**given: Any) -> FiltersConfig:
    return FiltersConfig.model_validate(given)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 2000), st.integers(1, 2000))
def test_sides_and_aspect(width: int, height: int, low: int, more: int) -> None:
    image = ImageSegment("0" * 64, width, height)
    side = filters(side={"min": low, "max": low + more})
    assert (refusal_of_image(side, image) == "") == (
        min(width, height) >= low and max(width, height) <= low + more
    )
    aspect = filters(aspect={"min": 0.5, "max": 2})
    assert (refusal_of_image(aspect, image) == "") == (width <= 2 * height and height <= 2 * width)
    pixels = filters(pixels={"min": low * more})
    assert (refusal_of_image(pixels, image) == "") == (width * height >= low * more)


@pytest.mark.parametrize(
    ("wanted", "columns", "reason"),
    [
        ({"allow": {"language": ["en", "de"]}}, {"language": "de"}, ""),
        ({"allow": {"language": ["en", "de"]}}, {"language": "fr"}, "filtered: column language"),
        ({"allow": {"language": ["en"]}}, {"language": None}, "filter: no column language"),
        ({"allow": {"language": ["en"]}}, {}, "filter: no column language"),
        ({"allow": {"ok": [True]}}, {"ok": True}, ""),
        ({"allow": {"n": [1]}}, {"n": "1"}, ""),
        ({"deny": {"NSFW": ["NSFW"]}}, {"NSFW": "NSFW"}, "filtered: column NSFW"),
        ({"deny": {"NSFW": ["NSFW"]}}, {"NSFW": "UNLIKELY"}, ""),
        ({"scores": {"similarity": {"min": 0.28}}}, {"similarity": 0.28}, ""),
        ({"scores": {"similarity": {"min": 0.28}}}, {"similarity": "0.3"}, ""),
        ({"scores": {"similarity": {"min": 0.28}}}, {"similarity": 0.2}, "filtered: score similarity"),
        ({"scores": {"p": {"max": 0.5}}}, {"p": float("nan")}, "filter: column p is no number"),
        ({"scores": {"p": {"max": 0.5}}}, {"p": "high"}, "filter: column p is no number"),
        ({"scores": {"a.b": {"max": 1}}}, {"a": {"b": 0}}, ""),
        ({"scores": {"a.b": {"max": 1}}}, {"a.b": 2}, "filtered: score a.b"),
        ({"scores": {"a.b": {"max": 1}}}, {"a": 3}, "filter: no column a.b"),
    ],
)
def test_columns(wanted: dict[str, Any], columns: dict[str, Any], reason: str) -> None:
    assert refusal_of_columns(filters(**wanted), columns) == reason


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"characters": {"min": 14, "max": 14}}, ""),
        ({"characters": {"max": 13}}, "filtered: characters"),
        ({"words": {"min": 5}}, "filtered: words"),
        ({"words": {"max": 4}}, ""),
        ({"images": {"max": 1}}, "filtered: images"),
        ({"deny_text": ["(?i)a\\s+DOG"]}, "filtered: text"),
        ({"deny_text": ["^dog"]}, ""),
    ],
)
def test_texts(wanted: dict[str, Any], reason: str) -> None:
    assert refusal_of_texts(filters(**wanted), ["see a dog", "there"], 2) == reason


def test_denied_images() -> None:
    denied = filters(deny_images=["AB" * 32])
    assert refusal_of_image(denied, ImageSegment("ab" * 32, 8, 8)) == "filtered: image denied"
    assert refusal_of_image(denied, ImageSegment("ac" * 32, 8, 8)) == ""


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"side": {}}, "give min, max or both"),
        ({"aspect": {"min": 2, "max": 1}}, "nothing would be taken"),
        ({"deny_text": ["("]}, "is no regular expression"),
        ({"deny_images": ["12"]}, "no SHA-256"),
        ({"sise": {"min": 1}}, "sise"),
    ],
)
def test_a_filter_that_is_wrong_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        filters(**wrong)


def pairs(path: Path) -> None:
    """Five captioned pictures of the same height, of different widths."""
    members = []
    for i, width in enumerate((32, 64, 128, 256, 300)):
        members += [(f"{i}.png", png(i, (width, 64))), (f"{i}.txt", b"word " * (i + 1))]
    tar(path, members)


def test_each_filter_counts_under_its_own_reason_and_keeps_no_payload(tmp_path: Path) -> None:
    pairs(tmp_path / "raw" / "a.tar")
    wanted = {"side": {"min": 64}, "aspect": {"max": 2}, "words": {"min": 3}}
    source = {"name": "captions", "format": "webdataset", "urls": ["${root}/raw/*.tar"], "filters": wanted}
    config = corpus(tmp_path, source)
    (unit,) = list_units(config)
    account = ingest.ingest_unit(config, unit)
    assert (account.read, account.kept) == (5, 1)
    assert account.refused == {"filtered: words": 2, "filtered: aspect ratio": 2}
    (report,) = ingest.reports(config, [unit])
    rows = read_part(report.quarantine).to_pylist()
    assert {row["key"] for row in rows} == {"0", "1", "3", "4"} and all(row["head"] == b"" for row in rows)


def test_a_filter_changes_the_parts_of_its_source_alone(tmp_path: Path) -> None:
    a = {"name": "a", "format": "jsonl", "urls": ["x"], "licence": "MIT"}
    plain = corpus(tmp_path, a, {**a, "name": "b"})
    changed = corpus(tmp_path, {**a, "filters": {"words": {"min": 2}}}, {**a, "name": "b"})
    digests = [[c.ingest_digest(s) for s in c.sources] for c in (plain, changed)]
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]
    assert plain.digest() != changed.digest()


def test_columns_of_a_draft_are_looked_at_before_its_images(tmp_path: Path) -> None:
    source = {
        "name": "s",
        "format": "webdataset",
        "urls": ["x"],
        "filters": {"scores": {"score": {"min": 1}}},
    }
    config, unit = corpus(tmp_path, source), Unit("s", "n", "n", "n", ())
    for columns, reason in (
        ({"score": 0}, "filtered: score score"),
        ({"other": 1}, "filter: no column score"),
    ):
        draft = Draft("k", (("text", "auto"),), "MIT", columns=columns)
        found = document_of(draft, unit, config)
        assert isinstance(found, Refused) and found.reason == reason
        assert found.head == (b"its columns: other" if "other" in columns else b"")
    kept = document_of(Draft("k", (("text", "auto"),), "MIT", columns={"score": 2}), unit, config)
    assert not isinstance(kept, Refused)


def test_a_column_that_no_row_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(4)])
    source = {
        "name": "s",
        "format": "jsonl",
        "urls": ["${root}/a.jsonl"],
        "filters": {"allow": {"lang": ["en"]}},
    }
    config = corpus(tmp_path, source)
    monkeypatch.setattr(ingest, "ingest_units", lambda c, units: [ingest.ingest_unit(c, u) for u in units])
    monkeypatch.setattr(ingest, "cluster", nullcontext)
    with pytest.raises(OneFlowError, match="name the column lang, which none of its 4 rows has"):
        ingest.run(config)
