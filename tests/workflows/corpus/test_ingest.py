"""Ingest of one unit: what becomes of each row, and that the account closes."""

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image

from oneflow_core.document import Document, TextSegment
from tests.workflows.corpus.inputs import corpus, encoded, jsonl, pairs, png, tar
from tests.workflows.corpus.test_pictures import bomb
from workflows.corpus import ingested, parts, sources
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import UnitReport, ingest_unit, reports
from workflows.corpus.ingested import UnitWriter, part_of
from workflows.corpus.parts import GROUP_ROWS, PartWriter, list_parts, read_part
from workflows.corpus.selection import Selection, select
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources import Draft, Refused
from workflows.corpus.sources.files import Files
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


def interleaved(root: Path, images: dict[str, bytes], **source: Any) -> CorpusConfig:
    """A page of MMC4: a text before each of three images, and one at the end."""
    info = [{"image_name": f"{i}.png", "matched_text_index": i} for i in range(3)]
    jsonl(root / "raw" / "d.jsonl", [{"text_list": ["a", "b", "c", "d"], "image_info": info}])
    tar(root / "raw" / "d.tar", images.items())
    named = {"name": "pages", "format": "mmc4", "urls": ["${root}/raw/d.jsonl"], "placement": "after"}
    return corpus(root, {**named, **source})


def test_a_page_stays_without_images_that_are_gone(tmp_path: Path) -> None:
    """Of three images one is not there and one is no image: its texts are joined, as MMC4's own without images are."""
    config = interleaved(tmp_path, {"0.png": b"<html>", "1.png": png(1)})
    report = only(config)
    (row,) = read_part(report.url, ["document"])["document"].to_pylist()
    document = Document.from_json(json.loads(row))
    told = [s.text if isinstance(s, TextSegment) else s.sha256 for s in document.segments]
    assert told == ["a b", hashlib.sha256(png(1)).hexdigest(), "c d"]
    assert document.meta["images_dropped"] == "2"
    refused = only(interleaved(tmp_path / "2", {"0.png": png(0), "1.png": png(1)}, bad_images="refuse"))
    assert (refused.account.kept, refused.account.refused) == (0, {"image missing": 1})
    none = only(interleaved(tmp_path / "3", {}))
    assert (none.account.kept, none.account.refused) == (0, {"image missing": 1})
    size = {"filters": {"side": {"min": 65}}}
    small = only(interleaved(tmp_path / "4", {"0.png": png(0, (80, 80)), "1.png": png(1)}, **size))
    assert (small.account.kept, small.images) == (1, 1)


LOOKS = [(3, 7, [3, 2, 2]), (20, 4, [1, 1, 1, 1]), (20, 20, [3] * 4 + [2] * 4)]


@pytest.mark.parametrize(("files", "first", "meant"), LOOKS)
def test_a_first_look_takes_a_few_of_a_few_files(
    tmp_path: Path, files: int, first: int, meant: list[int]
) -> None:
    """No more than asked for, all over the source; and what it wrote is not taken for the whole."""
    for number in range(files):
        jsonl(tmp_path / "raw" / f"{number:02d}.jsonl", [{"text": f"{number} {i}"} for i in range(5)])
    source = {"name": "texts", "format": "jsonl", "urls": ["${root}/raw/*.jsonl"]}
    config = corpus(tmp_path, source, first=first)
    ingest(config)
    found = reports(config, list_units(config))
    assert [report.account.kept for report in found] == meant and sum(meant) == first
    assert int(found[-1].unit.stem) >= files * 3 // 4 - 1
    whole = corpus(tmp_path, source)
    assert not {part_of(config, r.unit) for r in found} & {part_of(whole, u) for u in list_units(whole)}


def test_what_was_not_ingested_is_told(tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 1))
    config = corpus(tmp_path)
    with pytest.raises(OneFlowError, match="it was not ingested; run oneflow corpus build"):
        reports(config, list_units(config))


def only(config: CorpusConfig) -> UnitReport:
    ingest(config)
    (report,) = reports(config, list_units(config))
    return report


def texts(root: Path, rows: Sequence[Mapping[str, Any]], **rest: Any) -> CorpusConfig:
    jsonl(root / "raw" / "t.jsonl", rows)
    return corpus(root, {"name": "texts", "format": "jsonl", "urls": ["${root}/raw/t.jsonl"]}, **rest)


def test_texts_are_cleaned_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "plain"}, {"text": " e\u0301\r\n"}, {"text": "\x00\ufeff"}, {"text": "two\u200b"}]
    report = only(texts(tmp_path, rows))
    assert report.cleaned == 2 and report.account.refused == {"text empty": 1}
    documents = [Document.from_json(json.loads(t)) for t in read_part(report.url)["document"].to_pylist()]
    assert [d.texts[0].text for d in documents] == ["plain", "\u00e9", "two"]
    kept = only(texts(tmp_path, rows[:2], cleanup={"form": "keep", "controls": "keep", "strip": False}))
    assert kept.cleaned == 0 and kept.documents_sha256 != report.documents_sha256


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)
    tar(tmp_path / "raw" / "a.tar", [("a.jpg", turned), ("a.txt", b"turned")])
    (row,) = read_part(only(corpus(tmp_path)).url).to_pylist()
    segment = Document.from_json(json.loads(row["document"])).images[0]
    assert (segment.width, segment.height) == (20, 30)


def test_keys_that_are_no_text_are_refused(tmp_path: Path) -> None:
    report = only(texts(tmp_path, [b'{"id": "\\udc80", "text": "x"}', {"text": "fine"}]))  # type: ignore[list-item]
    assert report.account.refused == {"text not utf-8": 1} and report.account.kept == 1
    assert read_part(report.quarantine)["key"].to_pylist() == ["\\udc80"]


def test_a_large_file_is_written_group_by_group(tmp_path: Path) -> None:
    """Rows are not held: what is there is several groups, in the order of the rows, the same bytes each time."""
    rows = [{"id": str(i), "text": f"text {i}" if i % 3 else ""} for i in range(3 * GROUP_ROWS)]
    config = texts(tmp_path, rows)
    report = only(config)
    data = Path(report.url).read_bytes()
    file = pq.ParquetFile(report.url)
    assert file.num_row_groups == 2 and pq.ParquetFile(report.quarantine).num_row_groups == 1
    assert file.read(["doc_id"])["doc_id"].to_pylist() == [f"texts/t/{i}" for i in range(len(rows)) if i % 3]
    (unit,) = list_units(config)
    ingest_unit(config, unit)
    assert Path(report.url).read_bytes() == data
    assert not list(Path(report.url).parent.glob(".*"))


def test_large_parts_go_up_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = texts(tmp_path, [{"text": str(i)} for i in range(9)])
    small = Path(only(config).url).read_bytes()
    monkeypatch.setattr(parts, "ONE_PUT_BYTES", 1)
    (unit,) = list_units(config)
    ingest_unit(config, unit, 1)
    assert Path(only(config).url).name.endswith(".1.parquet") and Path(only(config).url).read_bytes() == small
    parts.put_file("memory://large/part", Path(only(config).url))
    assert fsspec.filesystem("memory").cat("/large/part") == small


class Failing(sources.Reader):
    """A reader that meets what it was not made for."""

    main = (".jsonl",)

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        yield Draft("fine", (("good", "auto"),), "MIT")
        yield Draft("odd", ((7, "auto"),), "MIT")  # type: ignore[arg-type]
        raise ZeroDivisionError("what the parser said")


def test_a_reader_that_fails_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before it stays, and what it said can be read; so does a row over which the checks fail."""
    monkeypatch.setitem(sources.READERS, "jsonl", Failing())
    report = only(texts(tmp_path, [{}]))
    assert (report.account.read, report.account.kept) == (3, 1)
    assert report.account.refused == {"check failed: TypeError": 1, "reader failed: ZeroDivisionError": 1}
    heads = {row["key"]: row["head"] for row in read_part(report.quarantine).to_pylist()}
    assert heads["t.jsonl"] == b"ZeroDivisionError: what the parser said"


def test_a_full_disk_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: object, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Failing, "read", read)
    monkeypatch.setitem(sources.READERS, "jsonl", Failing())
    config = texts(tmp_path, [{}])
    with pytest.raises(OSError, match="No space left"):
        ingest(config)
    assert not list_parts(str(tmp_path), "documents", "texts")


def test_an_account_that_does_not_close_fails_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that vanishes between reader and part, and a footer that was written wrong: both are told with the sums."""
    config = texts(tmp_path, [{"text": "a"}, {"text": ""}, {"text": "c"}])
    with monkeypatch.context() as patch:
        patch.setattr(UnitWriter, "refuse", lambda self, refused: None)
        with pytest.raises(OneFlowError, match="3 read are not 2 kept and 0 refused"):
            ingest(config)
    assert not list_parts(str(tmp_path), "documents", "texts")
    with monkeypatch.context() as patch:
        patch.setattr(ingested, "closed", lambda what, account: replace(account, read=9))
        patch.setattr(PartWriter, "put", _with_read_of(PartWriter.put, 9))
        ingest(config)
    with pytest.raises(OneFlowError, match=r"9 read are not 2 kept and 1 refused \(text empty: 1\)"):
        reports(config, list_units(config))


def _with_read_of(put: Callable[..., None], read: int) -> Callable[..., None]:
    return lambda self, url, facts: put(self, url, {**facts, "read": read} if "read" in facts else facts)


def test_a_selection_that_does_not_close_fails_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = texts(tmp_path, [{"text": "a"}, {"text": "a"}])
    report = only(config)
    monkeypatch.setattr(Selection, "left_out", lambda self, units: {"texts": Counter()})
    with pytest.raises(OneFlowError, match="source texts: its account does not close: 2 read are not 1 kept"):
        select(config, [report])
