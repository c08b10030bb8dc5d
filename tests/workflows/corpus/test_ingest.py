"""Ingest of one unit: what becomes of each row, and that the account closes."""

import hashlib
import json
from pathlib import Path

import pytest

from oneflow_core.document import Document
from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from tests.workflows.corpus.test_pictures import bomb
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import ingest_unit, reports
from workflows.corpus.parts import list_parts, read_part
from workflows.corpus.units import list_units
from workflows.errors import OneFlowError


def ingest(config: CorpusConfig) -> None:
    for unit in list_units(config):
        ingest_unit(config, unit)


def test_every_kind_of_bad_row_is_counted(tmp_path: Path) -> None:
    fine = png(5)
    members = [
        *pairs(0, 2),
        ("empty.png", fine),
        ("empty.txt", b""),
        ("blank.png", fine),
        ("blank.txt", b" \n\t "),
        ("long.png", fine),
        ("long.txt", b"x" * 1_000_000),
        ("broken.png", fine[: len(fine) // 2]),
        ("broken.txt", b"half a picture"),
        ("nothing.png", b""),
        ("nothing.txt", b"no bytes"),
        ("bomb.png", bomb(9000)),
        ("bomb.txt", b"a bomb"),
    ]
    tar(tmp_path / "raw" / "a.tar", members)
    config = corpus(tmp_path)
    ingest(config)
    (report,) = reports(config, list_units(config))
    assert report.account.kept == 2 and report.account.read == 8
    assert report.account.refused == {
        "text empty": 2,
        "text too long": 1,
        "image unreadable": 2,
        "image too large": 1,
    }
    (url,) = list_parts(str(tmp_path), "quarantine", "ingest").values()
    rows = {row["key"]: row for row in read_part(url).to_pylist()}
    assert set(rows) == {"empty", "blank", "long", "broken", "nothing", "bomb"}
    assert rows["long"]["head"] == b"x" * 256 and rows["broken"]["head"] == fine[:256]
    assert rows["bomb"]["file"].endswith("a.tar") and rows["bomb"]["source"] == "captions"


def test_documents_name_their_images_by_digest(tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "x" / "a.tar", pairs(3, 1))
    config = corpus(tmp_path, {"name": "captions", "format": "webdataset", "urls": ["${root}/raw/**/*.tar"]})
    ingest(config)
    (report,) = reports(config, list_units(config))
    (row,) = read_part(report.url).to_pylist()
    document = Document.from_json(json.loads(row["document"]))
    assert document.doc_id == row["doc_id"] == "captions/x/a/00003"
    assert row["images"] == [hashlib.sha256(png(3)).hexdigest()]
    assert (document.images[0].width, document.images[0].height, document.kind) == (64, 64, "pair")
    assert row["text_bytes"] == len("picture 3")


def test_rows_with_missing_images_and_unpaired_surrogates(tmp_path: Path) -> None:
    rows = [
        {"image": "gone.png", "question": "q", "answer": "a"},
        b'{"text": "\\ud800"}',
        {"segments": [{"text": str(i)} for i in range(3)] + [{"image": f"{i}.png"} for i in range(40)]},
        {"text": "fine"},
    ]
    jsonl(tmp_path / "raw" / "q.jsonl", rows)
    config = corpus(tmp_path, {"name": "vqa", "format": "jsonl", "urls": ["${root}/raw/q.jsonl"]})
    ingest(config)
    (report,) = reports(config, list_units(config))
    assert report.account.refused == {"image missing": 1, "text not utf-8": 1, "too many images": 1}
    assert report.account.kept == 1


def test_a_part_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 5))
    config = corpus(tmp_path)
    ingest(config)
    (url,) = list_parts(str(tmp_path), "documents", "captions").values()
    first = Path(url).read_bytes()
    Path(url).unlink()
    ingest(config)
    assert Path(url).read_bytes() == first


def test_limit_takes_the_first(tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 9))
    source = {"name": "captions", "format": "webdataset", "urls": ["${root}/raw/*.tar"], "limit": 4}
    config = corpus(tmp_path, source)
    ingest(config)
    (report,) = reports(config, list_units(config))
    assert [row["doc_id"][-1] for row in read_part(report.url).to_pylist()] == ["0", "1", "2", "3"]


def test_what_was_not_ingested_is_told(tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 1))
    config = corpus(tmp_path)
    with pytest.raises(OneFlowError, match="it was not ingested; run oneflow corpus build"):
        reports(config, list_units(config))
