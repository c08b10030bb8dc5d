"""What is taken of what was kept: shares and weights, the same in every order and on every machine."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import UnitReport, ingest_unit, reports
from workflows.corpus.selection import select
from workflows.corpus.units import list_units
from workflows.errors import OneFlowError, UsageError


def ingested(config: CorpusConfig) -> list[UnitReport]:
    units = list_units(config)
    for unit in units:
        ingest_unit(config, unit)
    return reports(config, units)


def two(folder: Path, a: dict[str, float], b: dict[str, float]) -> CorpusConfig:
    """Sources of 300 and of 100 texts."""
    for name, count in (("a", 300), ("b", 100)):
        jsonl(folder / f"{name}.jsonl", [{"id": str(i), "text": f"{name} {i}"} for i in range(count)])
    named = [
        {"name": n, "format": "jsonl", "urls": [str(folder / f"{n}.jsonl")], **more}
        for n, more in (("a", a), ("b", b))
    ]
    return corpus(folder / "root", *named)


def test_share_takes_some_and_counts_the_others(tmp_path: Path) -> None:
    config = two(tmp_path, {"share": 0.5}, {})
    units = ingested(config)
    selection = select(config, units)
    taken = int(selection.taken(0).sum())
    assert 110 < taken < 190 and selection.taken(1).all()
    assert selection.left_out(units) == {"a": {"left out by share": 300 - taken}, "b": {}}
    assert np.array_equal(select(config, units).taken(0), selection.taken(0))


def test_weights_bring_sources_to_their_proportion(tmp_path: Path) -> None:
    config = two(tmp_path, {"weight": 1}, {"weight": 2})
    units = ingested(config)
    selection = select(config, units)
    assert selection.taken(1).all()
    assert 30 < int(selection.taken(0).sum()) < 70


def test_deny_lists_take_out_documents_and_images(tmp_path: Path) -> None:
    """What a list names goes, before duplicates are looked for; its content counts in the config's digest."""
    tar(tmp_path / "raw" / "a.tar", pairs(0, 4))
    jsonl(tmp_path / "raw" / "b.jsonl", [{"id": str(i), "text": "same"} for i in range(3)])
    named = [
        {"name": "captions", "format": "webdataset", "urls": [f"{tmp_path}/raw/*.tar"]},
        {"name": "texts", "format": "jsonl", "urls": [f"{tmp_path}/raw/*.jsonl"]},
    ]
    plain = corpus(tmp_path / "root", *named)
    units = ingested(plain)
    denied = plain.model_copy(update={"deny": ["${root}/deny.txt"]})
    with pytest.raises(OneFlowError, match=r"deny\.txt"):
        select(denied, units)
    sha256 = hashlib.sha256(png(2)).hexdigest()
    (tmp_path / "root" / "deny.txt").write_text(f"# asked for\n{sha256}  # a picture\n\ntexts/b/0\n")
    selection = select(denied, units)
    assert selection.taken(0).tolist() == [True, True, False, True]
    assert selection.taken(1).tolist() == [False, True, False]
    assert selection.left_out(units) == {"captions": {"denied": 1}, "texts": {"denied": 1, "duplicate": 1}}
    before = denied.digest()
    (tmp_path / "root" / "deny.txt").write_text("texts/b/0")
    assert denied.digest() != before != plain.digest()
    assert [denied.ingest_digest(s) for s in denied.sources] == [
        plain.ingest_digest(s) for s in plain.sources
    ]


def test_a_weight_for_some_alone_is_refused(tmp_path: Path) -> None:
    config = two(tmp_path, {"weight": 1}, {})
    with pytest.raises(UsageError, match="source b: it has no weight"):
        select(config, ingested(config))
