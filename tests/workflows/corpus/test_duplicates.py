"""Duplicates: against comparing each with each."""

import io
import itertools
from dataclasses import replace
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oneflow_core.document import Document, ImageSegment, TextSegment
from tests.reference import shared
from tests.workflows.corpus.inputs import corpus, encoded, jsonl, png, tar
from workflows.corpus.config import CorpusConfig
from workflows.corpus.duplicates import (
    DIGEST,
    content_digest,
    nearly_repeated,
    picture_digest,
    repeated,
    text_digest,
)
from workflows.corpus.hashes import hash_of, hash_unit, read_hashes
from workflows.corpus.ingest import UnitReport, ingest_unit, reports
from workflows.corpus.selection import select
from workflows.corpus.selection_config import DuplicatesConfig
from workflows.corpus.units import list_units
from workflows.errors import OneFlowError


def by_comparing_all(hashes: list[int], groups: list[int], distance: int) -> list[bool]:
    """The rule, word for word: left out is what is near an earlier one that is not left out."""
    out: list[bool] = []
    for j, (hash_j, group) in enumerate(zip(hashes, groups, strict=True)):
        near = (
            not out[i] and groups[i] == group and (hashes[i] ^ hash_j).bit_count() <= distance
            for i in range(j)
        )
        out.append(any(near))
    return out


@st.composite
def similar(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Hashes of which many differ in a few bits only, in a few groups."""
    seeds = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    hashes, groups = [], []
    for _ in range(draw(st.integers(0, 40))):
        flips = draw(st.lists(st.integers(0, 63), max_size=12))
        hashes.append(draw(st.sampled_from(seeds)) ^ sum(1 << bit for bit in set(flips)))
        groups.append(draw(st.sampled_from([0, 0, 0, 1, 2**64 - 1])))
    return hashes, groups


@settings(max_examples=150)
@given(similar(), st.integers(0, 16))
def test_near_duplicates_are_those_that_comparing_all_finds(
    drawn: tuple[list[int], list[int]], distance: int
) -> None:
    hashes, groups = drawn
    found = nearly_repeated(np.array(hashes, np.uint64), np.array(groups, np.uint64), distance)
    assert found.tolist() == by_comparing_all(hashes, groups, distance)


@pytest.mark.parametrize("size", [3_000, 20_000])
def test_near_duplicates_of_many(size: int) -> None:
    """Copies with up to 4 bits flipped among random hashes: sizes at which other bands are chosen give the same."""
    rng = np.random.default_rng(size)
    plain = rng.integers(0, 2**64, size, dtype=np.uint64)
    flips = np.zeros(size // 10, np.uint64)
    for _ in range(4):
        flips |= np.uint64(1) << rng.integers(0, 64, len(flips), dtype=np.uint64)
    hashes = np.concatenate([plain, plain[: len(flips)] ^ flips])
    found = nearly_repeated(hashes, np.zeros(len(hashes), np.uint64), 4)
    assert found[size:].all() and not found[:size].any()


@given(st.lists(st.integers(0, 30), max_size=60))
def test_the_first_of_equals_stays(values: list[int]) -> None:
    digests = np.array([(value // 5, value % 5) for value in values], DIGEST)
    assert repeated(digests).tolist() == [value in values[:i] for i, value in enumerate(values)]


A, B = (ImageSegment(c * 64, 8, 8) for c in "ab")
PAIR = Document("s/1", "s", "MIT", (A, TextSegment("a cat")))


def test_what_makes_documents_equal() -> None:
    copy = Document("t/9", "t", "CC0-1.0", PAIR.segments, {"url": "x"})
    renamed = replace(PAIR, segments=(A, TextSegment("the cat")))
    question, other = (
        replace(
            PAIR,
            segments=(replace(A, role="prompt"), TextSegment(text, "prompt"), TextSegment("1", "target")),
        )
        for text in ("how many?", "what?")
    )
    assert content_digest(copy) == content_digest(PAIR) and picture_digest(copy) == picture_digest(PAIR)
    assert picture_digest(renamed) == picture_digest(PAIR)
    every = [PAIR, renamed, question, other, replace(PAIR, segments=(B, TextSegment("a cat")))]
    every += [
        replace(PAIR, segments=(TextSegment("a cat"), A)),
        replace(PAIR, segments=(TextSegment("a cat"),)),
    ]
    for left, right in itertools.combinations(every, 2):
        assert content_digest(left) != content_digest(right)
    assert picture_digest(question) != picture_digest(other)
    assert text_digest(PAIR) is None and text_digest(question) != text_digest(other)


def ingested(config: CorpusConfig) -> list[UnitReport]:
    units = list_units(config)
    for unit in units:
        ingest_unit(config, unit)
    return reports(config, units)


def texts(folder: Path, **files: list[str]) -> list[dict[str, object]]:
    """A source for each file of lines."""
    for name, lines in files.items():
        jsonl(folder / f"{name}.jsonl", [{"id": f"{name}{i}", "text": text} for i, text in enumerate(lines)])
    return [{"name": n, "format": "jsonl", "urls": [str(folder / f"{n}.jsonl")]} for n in files]


def test_the_first_source_keeps_what_both_have(tmp_path: Path) -> None:
    sources = texts(tmp_path, b=["x", "y", "x"], a=["y", "z", "  y \r\n"])
    config = corpus(tmp_path / "root", *sources)
    units = ingested(config)
    selection = select(config, units)
    assert [selection.taken(i).tolist() for i in (0, 1)] == [[True, True, False], [False, True, False]]
    assert selection.left_out(units) == {"b": {"duplicate": 1}, "a": {"duplicate": 2}}
    assert {s: (a.read, a.kept) for s, a in selection.accounts(units).items()} == {"b": (3, 2), "a": (3, 1)}
    turned = corpus(tmp_path / "root", *sources[::-1])
    assert select(turned, ingested(turned)).left_out(units[::-1]) == {
        "a": {"duplicate": 1},
        "b": {"duplicate": 2},
    }
    off = corpus(tmp_path / "root", *sources, duplicates={"exact": False})
    assert all(select(off, units).taken(i).all() for i in (0, 1))


def test_duplicates_go_before_weights(tmp_path: Path) -> None:
    sources = texts(tmp_path, a=["same"] * 90 + [str(i) for i in range(10)], b=[f"b{i}" for i in range(100)])
    config = corpus(tmp_path / "root", *({**s, "weight": 1} for s in sources))
    selection = select(config, ingested(config))
    assert selection.taken(0).sum() == 11 and selection.taken(1).sum() < 30


PHOTO = "photos/china.jpg"


def test_near_duplicates_of_real_photographs(tmp_path: Path) -> None:
    """Other sizes and qualities of a photograph are found; other photographs and other questions about it stay."""
    with Image.open(shared(PHOTO)) as image:
        versions = [
            encoded(image.resize(s), "JPEG", quality=q) for s, q in (((640, 427), 90), ((300, 200), 60))
        ]
    others = [p.read_bytes() for p in sorted(shared("photos").iterdir()) if p.name != "china.jpg"]
    pictures = [*versions, *others, b"\x89PNG\r\n\x1a\n"]
    members = [
        m for i, data in enumerate(pictures) for m in ((f"{i}.png", data), (f"{i}.txt", f"t{i}".encode()))
    ]
    tar(tmp_path / "raw" / "a.tar", members)
    rows = [{"image": "x.jpg", "question": q, "answer": "a"} for q in ("one?", "two?", "one?")]
    jsonl(tmp_path / "q.jsonl", rows)
    tar(tmp_path / "q.tar", [("x.jpg", versions[1])])
    named = [
        {"name": "captions", "format": "webdataset", "urls": ["${root}/raw/*.tar"]},
        {"name": "vqa", "format": "jsonl", "urls": ["${root}/q.jsonl"]},
    ]
    config = corpus(tmp_path, *named, duplicates={"near": "phash", "exact": "off"})
    units = ingested(config)
    with pytest.raises(OneFlowError, match="images were not hashed"):
        select(config, units)
    for unit in units:
        hash_unit(config, unit.unit, unit.url)
    selection = select(config, units)
    assert selection.taken(0).tolist() == [True, False, *[True] * len(others)]
    assert selection.taken(1).tolist() == [True, True, False]
    assert selection.left_out(units) == {"captions": {"near duplicate": 1}, "vqa": {"near duplicate": 1}}
    values, known = read_hashes(units[0].url)
    assert known.all() and int(values[2]) == hash_of(others[0])


def test_hashes_are_those_of_imagehash() -> None:
    data = png(3, (300, 200))
    with Image.open(io.BytesIO(data)) as image:
        assert f"{hash_of(data):016x}" == str(imagehash.phash(image.convert("RGB")))
    assert hash_of(b"no image") is None


def test_the_switch_as_yaml_reads_it() -> None:
    config = DuplicatesConfig.model_validate({"exact": False, "near": False})
    assert (config.exact, config.near) == ("off", "off")
    with pytest.raises(ValueError, match="phash"):
        DuplicatesConfig.model_validate({"near": True})
