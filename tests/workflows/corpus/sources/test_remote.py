"""Sources that lie elsewhere: on a web server that lists nothing, and on S3; each byte is fetched once."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import RunningStack
from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from tests.workflows.corpus.sources.conftest import Web
from tests.workflows.corpus.sources.reading import read, reasons, rows_of, seen
from workflows.corpus import ingest, listing
from workflows.corpus.config import CorpusConfig
from workflows.corpus.parts import list_parts, read_part
from workflows.corpus.sources import Draft
from workflows.corpus.units import list_units, opened
from workflows.errors import OneFlowError

SECRET = "Pl4ntedS3cretValue0123456789"


def written(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """A small source of each kind below `folder`: format -> path and settings, images named by `place`."""
    folder.mkdir(parents=True, exist_ok=True)
    tar(folder / "wds.tar", pairs(0, 4))
    tar(folder / "more.tgz", pairs(4, 2))
    for i in range(2):
        (folder / "pictures").mkdir(exist_ok=True)
        (folder / "pictures" / f"{i}.png").write_bytes(png(i))
    tar(folder / "pictures.tar", [(f"{i}.png", png(i)) for i in range(2)])
    pq.write_table(
        pa.Table.from_pylist([{"image": png(i, (128, 128)), "text": f"{i}"} for i in range(60)]),
        folder / "t.parquet",
        row_group_size=20,
        compression="none",
    )
    jsonl(folder / "rows.jsonl", [{"text": f"{i}", "image": f"{i}.png"} for i in range(2)])
    said = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}]
    llava = [{"id": i, "image": f"pictures/{i}.png", "conversations": said} for i in range(2)]
    (folder / "l.json").write_text(json.dumps(llava))
    return {
        "webdataset": ("{wds.tar,more.tgz}", {}),
        "parquet": ("t.parquet", {}),
        "jsonl": ("rows.jsonl", {"images": ["{place}/pictures.tar"]}),
        "llava": ("l.json", {"images": ["{place}/pictures"]}),
    }


def everywhere(kind: str, place: str, folder: Path) -> list[tuple[list[Any], str]]:
    path, settings = written(folder)[kind]
    found = []
    for base in (str(folder), place):
        filled = {k: [v.replace("{place}", base) for v in values] for k, values in settings.items()}
        config = corpus(
            "/tmp/oneflow-none", {"name": "s", "format": kind, "urls": [f"{base}/{path}"], **filled}
        )
        for unit in list_units(config):
            with opened(config, unit) as rows:
                found.append((list(rows), rows.sha256()))
    return found


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("kind", ["webdataset", "parquet", "jsonl", "llava"])
def test_a_web_server_gives_what_the_disk_gives(web: Web, kind: str, ranges: bool) -> None:
    web.ranges = ranges
    found = everywhere(kind, web.url, web.folder)
    half = len(found) // 2
    assert found[:half] == found[half:] and all(rows for rows, _ in found)
    assert all(isinstance(row, Draft) and not reasons(row) for rows, _ in found for row in rows)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "jsonl", "llava"])
def test_s3_gives_what_the_disk_gives(stack: RunningStack, tmp_path: Path, kind: str) -> None:
    written(tmp_path)
    place = stack.url(f"readers-{kind}")
    fsspec.filesystem("s3").put(f"{tmp_path}/", f"{place}/", recursive=True)
    found = everywhere(kind, place, tmp_path)
    half = len(found) // 2
    assert found[:half] == found[half:] and all(rows for rows, _ in found)
    globbed = corpus("/r", {"name": "s", "format": "parquet", "urls": [f"{place}/*.par*"]})
    assert [unit.name for unit in list_units(globbed)] == ["t.parquet"]


def test_rows_that_name_objects_of_s3(stack: RunningStack, tmp_path: Path) -> None:
    place = stack.url("readers-rows")
    fsspec.filesystem("s3").pipe_file(f"{place}/a b.png", png(1))
    urls = [f"{place}/a b.png", f"{place}/gone.png", "s3://no-such-bucket-here/x.png"]
    pq.write_table(pa.Table.from_pylist([{"url": u, "caption": u} for u in urls]), tmp_path / "u.parquet")
    fetch = {"retries": 0}
    config = corpus(
        f"{place}/root",
        {"name": "s", "format": "parquet", "urls": [str(tmp_path / "u.parquet")], "fetch": fetch},
    )
    documents, refused = ingested(config)
    assert len(documents) == 1 and refused == {"fetch failed": 2}
    fsspec.filesystem("s3").rm_file(f"{place}/a b.png")
    (unit,) = list_units(config)
    with opened(config, unit) as rows:
        assert seen(next(row for row in rows if isinstance(row, Draft)))[0][0] == png(1)


def test_a_row_whose_scheme_needs_a_package_ends_the_job(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"text": "t", "image": "gs://bucket/a.png"}])
    with pytest.raises(OneFlowError, match="gcsfs"):
        rows_of("jsonl", path, root=str(tmp_path))


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "coco"])
def test_the_digest_costs_no_second_fetch(web: Web, kind: str) -> None:
    name = {"webdataset": "wds.tar", "parquet": "t.parquet", "coco": "c.json"}[kind]
    written(web.folder)
    captions = [{"id": i, "image_id": 0, "caption": "c" * 2000} for i in range(1000)]
    lists = {"annotations": captions, "images": [{"id": 0, "file_name": "pictures/0.png"}]}
    (web.folder / "c.json").write_text(json.dumps(lists))
    config = corpus("/tmp/oneflow-none", {"name": "s", "format": kind, "urls": [f"{web.url}/{name}"]})
    (unit,) = list_units(config)
    with opened(config, unit) as rows:
        assert len(list(rows)) == {"wds.tar": 4, "t.parquet": 60, "c.json": 1000}[name]
        assert rows.sha256() == hashlib.sha256((web.folder / name).read_bytes()).hexdigest()
    size = (web.folder / name).stat().st_size
    assert size <= web.sent[f"/{name}"] <= size * 1.2 + 200_000


def test_a_limit_fetches_the_beginning_only(web: Web, tmp_path: Path) -> None:
    noise = [(f"{i:03d}.bin", bytes(4_000_000)) for i in range(8)]
    tar(web.folder / "a.tar", [*pairs(0, 2), *noise, *pairs(5, 2)])
    source = {"name": "captions", "format": "webdataset", "urls": [f"{web.url}/a.tar"], "limit": 1}
    config = corpus(tmp_path, source)
    (unit,) = list_units(config)
    assert ingest.ingest_unit(config, unit).kept == 1
    assert web.sent["/a.tar"] < 16_000_000


def test_what_breaks_off_is_read_on_and_what_stays_broken_is_told(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows.corpus.sources import stored

    monkeypatch.setattr(stored, "WAIT", 0.001)
    written(web.folder)
    whole = rows_of("webdataset", web.folder / "wds.tar")
    web.fail["/wds.tar"] = 2
    assert rows_of("webdataset", f"{web.url}/wds.tar") == whole
    web.fail["/wds.tar"] = 10**6
    with pytest.raises(OneFlowError, match=r"wds\.tar"):
        rows_of("webdataset", f"{web.url}/wds.tar")


def test_what_a_server_lacks_is_told(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OneFlowError, match="there is no webdataset input"):
        rows_of("webdataset", f"{web.url}/{{a,b}}.tar")
    tar(web.folder / "a.tar", pairs(0, 1))
    assert len(rows_of("webdataset", f"{web.url}/{{a,b}}.tar")) == 1
    with pytest.raises(OneFlowError, match=r"no jsonl input at .*nowhere"):
        rows_of("jsonl", jsonl(web.folder / "here.jsonl", [{"text": "x"}]), web.folder / "nowhere.jsonl")
    web.password = "x"
    with pytest.raises(OneFlowError, match="access denied"):
        rows_of("webdataset", f"{web.url}/a.tar")
    monkeypatch.setattr(listing, "WAIT", 0.001)
    with pytest.raises(OneFlowError, match="the server does not answer"):
        rows_of("webdataset", "http://127.0.0.1:1/a.tar")
    with pytest.raises(OneFlowError, match="zips are no places"):
        rows_of("jsonl", web.folder / "here.jsonl", images=[f"{web.folder}/i.zip"])
    for url, package in (("gs://bucket/a.tar", "gcsfs"), ("az://box/a.tar", "adlfs")):
        with pytest.raises(OneFlowError, match=package):
            rows_of("webdataset", url)


def ingested(config: CorpusConfig) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows: list[dict[str, Any]] = []
    refused: dict[str, int] = {}
    for unit in list_units(config):
        account = ingest.ingest_unit(config, unit)
        for reason, count in account.refused.items():
            refused[reason] = refused.get(reason, 0) + count
    for url in list_parts(config.root, "documents", config.sources[0].name).values():
        rows += read_part(url).to_pylist()
    return rows, refused


def urls_in_rows(web: Web) -> list[dict[str, Any]]:
    for i in range(6):
        (web.folder / f"{i}.png").write_bytes(png(i))
    (web.folder / "big.png").write_bytes(b"\x89PNG" + bytes(200_000))
    (web.folder / "page.html").write_bytes(b"<html>not found, but 200</html>")
    web.slow["/slow.png"] = 9.0
    (web.folder / "slow.png").write_bytes(png(9))
    web.fail["/2.png"] = 1
    names = [*(f"{i}.png" for i in range(6)), "gone.png", "big.png", "page.html", "slow.png", "0.png"]
    return [{"url": f"{web.url}/{name}", "caption": f"row {n}"} for n, name in enumerate(names)]


def test_images_by_url_are_fetched_kept_and_refused_within_bounds(web: Web, tmp_path: Path) -> None:
    rows = urls_in_rows(web)
    rows += [
        {"url": url, "caption": "x"}
        for url in ("file:///etc/passwd", "ftp://x/a", "http://127.0.0.1:1/x.png")
    ]
    rows += [{"url": f"{web.url}/0.png::file:///etc/passwd", "caption": "a chain"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "urls.parquet")
    fetch = {"timeout_seconds": 3.0, "retries": 1}
    source = {"name": "web", "format": "parquet", "urls": [str(tmp_path / "urls.parquet")], "fetch": fetch}
    config = corpus(tmp_path / "root", source, limits={"image_bytes": 100_000})
    documents, refused = ingested(config)
    assert [d["doc_id"].rpartition("/")[2] for d in documents] == [f"row-{n}" for n in (0, 1, 2, 3, 4, 5, 10)]
    assert [d["images"] for d in documents][:6] == [[hashlib.sha256(png(i)).hexdigest()] for i in range(6)]
    assert refused == {
        "fetch failed": 3,
        "image too large": 1,
        "image format": 1,
        "url scheme not allowed": 3,
    }
    # Encode sees what ingest saw, though the web has changed, and asks for nothing.
    for i in range(6):
        (web.folder / f"{i}.png").write_bytes(png(50 + i))
    asked = len(web.asked)
    (unit,) = list_units(config)
    with opened(config, unit) as again:
        drafts = [row for row in again if isinstance(row, Draft)]
    assert [seen(d)[0][0] for d in drafts[:6]] == [png(i) for i in range(6)]
    assert len(web.asked) == asked


def test_no_secret_is_ever_written_or_shown(
    web: Web, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A password and a signature in the URLs of a source, of its images and of its rows."""
    caplog.set_level(logging.DEBUG)
    web.password = SECRET
    host = web.url.removeprefix("http://")
    safe, signed = f"http://user:{SECRET}@{host}", f"?X-Amz-Signature={SECRET}&v=1"
    (web.folder / "a.png").write_bytes(png(1))
    rows = [
        {"image": "a.png", "text": "kept", "url": f"{safe}/page{signed}"},
        {"image": f"{safe}/a.png{signed}", "text": "by url"},
        {"image": f"{safe}/gone.png{signed}", "text": "gone"},
        {"image": f"file://user:{SECRET}@x/y", "text": "refused"},
        {"url": f"{safe}/p{signed}", "question": "no answer"},
        {"id": f"{safe}/p{signed}", "text": "by url", "licence": f"{safe}/p{signed}"},
        b'{"broken": "' + f"{safe}/p{signed}".encode(),
        b'{"escaped": "' + f"{safe}/p{signed}".replace("/", "\\/").encode(),
    ]
    jsonl(web.folder / "r.jsonl", rows)
    source = {"name": "s", "format": "jsonl", "urls": [f"{safe}/r.jsonl{signed}"], "images": []}
    config = corpus(tmp_path / "root", {**source, "fetch": {"retries": 0}})
    documents, refused = ingested(config)
    assert len(documents) == 3 and sum(refused.values()) == 5
    assert json.loads(documents[0]["document"])["meta"] == {"url": f"{web.url}/page?v=1"}
    reports = ingest.reports(config, list_units(config))
    shown = [repr(reports), json.dumps([vars_of(r.input) for r in reports]), repr(list_units(config))]
    web.password = "another"
    for broken in (f"{safe}/r.jsonl{signed}", f"{safe}/missing.jsonl{signed}"):
        with pytest.raises(OneFlowError) as told:
            ingested(corpus(tmp_path / "other", {**source, "urls": [broken]}))
        shown += [str(told.value), repr(told.value), repr(told.value.__cause__)]
    captured = capfd.readouterr()
    shown += [captured.out, captured.err]
    assert all(SECRET not in text for text in shown), [text for text in shown if SECRET in text]
    files = [p for p in (tmp_path / "root").rglob("*") if p.is_file()]
    assert len(files) >= 3 and all(SECRET.encode() not in p.read_bytes() for p in files)
    for url in list_parts(config.root, "quarantine", "ingest").values():
        assert SECRET not in str(read_part(url).to_pylist())
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("workflows")]
    assert all(SECRET not in text for text in ours)


def vars_of(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__}


def test_places_on_the_web(web: Web) -> None:
    (web.folder / "i").mkdir()
    (web.folder / "i" / "a b.png").write_bytes(png(1))
    path = jsonl(
        web.folder / "r.jsonl", [{"text": "t", "image": n} for n in ("a b.png", "../r.jsonl", "no.png")]
    )
    drafts, _ = read("jsonl", path, images=[f"{web.url}/i"])
    assert seen(drafts[0])[0][0] == png(1)
    assert reasons(drafts[1]) == ["image outside its place"] and reasons(drafts[2]) == ["image missing"]
