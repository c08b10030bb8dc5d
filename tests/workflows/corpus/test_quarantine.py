"""What was refused can be listed, exported, mended and tried again; and the next build takes what came out."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from workflows import cli
from workflows.corpus import build, ingest
from workflows.corpus.config import CorpusConfig
from workflows.corpus.parts import list_parts, write_part
from workflows.corpus.quarantine import Wanted, export, first, summary, tables
from workflows.corpus.retry import retry
from workflows.corpus.units import list_units
from workflows.errors import UsageError

GOOD = png(9)
BAD = GOOD[:100] + bytes([GOOD[100] ^ 1]) + GOOD[101:]
SMALL = {"understanding": None, "part_images": 16, "batch_size": 8, "actors": 1}
ALL = Wanted()


def mixed(root: Path, **rest: Any) -> CorpusConfig:
    """Two tars with bad pictures, and texts of which some are filtered out."""
    tar(
        root / "raw" / "a.tar",
        [*pairs(0, 3), ("bad.png", BAD), ("bad.txt", b"x"), ("up.png", BAD), ("up.txt", b"y")],
    )
    tar(root / "raw" / "b.tar", [*pairs(10, 2), ("none.txt", b"no picture")])
    jsonl(root / "t.jsonl", [{"id": f"../{i}", "text": "w " * i} for i in range(4)])
    named = [
        {"name": "captions", "format": "webdataset", "urls": ["${root}/raw/*.tar"]},
        {
            "name": "some-texts",
            "format": "jsonl",
            "urls": ["${root}/t.jsonl"],
            "filters": {"words": {"min": 2}},
        },
    ]
    return corpus(root, *named, encode=SMALL, **rest)


def ingested(config: CorpusConfig) -> CorpusConfig:
    for unit in list_units(config):
        ingest.ingest_unit(config, unit)
    return config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ingested(mixed(tmp_path))
    return tmp_path


def test_counts_by_source_and_reason(root: Path) -> None:
    assert summary(str(root), ALL) == {
        ("ingest", "captions", "image unreadable"): 2,
        ("ingest", "captions", "image missing"): 1,
        ("ingest", "some-texts", "text empty"): 1,
        ("ingest", "some-texts", "filtered: words"): 1,
    }
    assert summary(str(root), Wanted(source="captions", reason="image m")).total() == 1
    assert summary(str(root), Wanted(stage="encode")).total() == 0
    assert len(first(str(root), ALL, 3)) == 3


def test_both_stages_are_listed(root: Path) -> None:
    """A part as encode writes it: the same columns, and the image."""
    row = {
        "source": "captions",
        "file": "a.tar",
        "key": "1.png",
        "reason": "image unreadable",
        "head": b"\x89",
    }
    encode = pa.Table.from_pylist([row | {"sha256": "ab" * 32}])
    write_part(str(root / "quarantine" / "encode" / "part-x.parquet"), encode, {"encode": "d"})
    assert summary(str(root), ALL)["encode", "captions", "image unreadable"] == 1
    (table,) = tables(str(root), Wanted(stage="encode"))
    assert table.to_pylist() == [row | {"stage": "encode", "sha256": "ab" * 32}]
    report = retry(mixed(root), Wanted(stage="encode"))
    assert (report.images, report.files) == (1, 0)
    assert summary(str(root), Wanted(stage="encode")).total() == 0


def test_what_was_refused_before_the_file_changed_is_of_the_past(root: Path) -> None:
    tar(root / "raw" / "a.tar", pairs(0, 3))
    os.utime(root / "raw" / "a.tar", (1, 1))
    config = CorpusConfig.model_validate(mixed_config(root))
    for unit in list_units(config):
        if unit.name == "a.tar":
            ingest.ingest_unit(config, unit)
    assert ("ingest", "captions", "image unreadable") not in summary(str(root), ALL)
    assert len(list_parts(str(root), "quarantine", "ingest")) == 3, "the past is there until gc"


def mixed_config(root: Path) -> dict[str, Any]:
    """The config of `mixed`, without writing its files again."""
    other = root / "elsewhere"
    tree = mixed(other).model_dump(mode="json")
    return json.loads(json.dumps(tree).replace(str(other), str(root)))  # type: ignore[no-any-return]


def test_export_to_jsonl_and_parquet(root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "rows.jsonl")
    assert export(str(root), out, ALL) == 5
    rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert {base64.b64decode(r["head"]) for r in rows if r["reason"] == "image unreadable"} == {BAD[:256]}
    assert export(str(root), out.replace("jsonl", "parquet"), Wanted(reason="image unreadable")) == 2
    table = pq.read_table(out.replace("jsonl", "parquet"))
    assert table["head"].to_pylist() == [BAD[:256]] * 2 and set(table["stage"].to_pylist()) == {"ingest"}
    with pytest.raises(UsageError, match=r"\.jsonl or \.parquet"):
        export(str(root), "rows.csv", ALL)


def oneflow(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = 0
    try:
        cli.main(["corpus", "quarantine", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().out


def test_the_commands(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = oneflow(capsys, "list", str(root), "--reason", "image", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["rows"] == 3 and {row["key"] for row in told["first"]} == {"bad", "up", "none"}
    assert "2  ingest  captions" in out
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(mixed_config(root)))
    before = {path for path in tmp_path.rglob("*")}
    code, out = oneflow(
        capsys, "export", str(root), "--out", str(tmp_path / "out"), "--payload", str(file), "--json"
    )
    assert code == 0 and json.loads(out.splitlines()[-1])["rows"] == 5
    held = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert held["captions/a/bad.0.png"] == BAD and held["captions/a/bad.1.txt"] == b"x"
    assert sum(data == BAD for data in held.values()) == 2
    outside = {path for path in tmp_path.rglob("*") if (tmp_path / "out") not in (path, *path.parents)}
    assert outside == before, "a key that leads up leads nowhere"
    assert oneflow(capsys, "export", str(root), "--out", "x.csv")[0] == 2


def rows(root: Path, *texts: str) -> CorpusConfig:
    """A file of texts beside one that never changes; written again, in place, its listing stays as it was."""
    jsonl(root / "b.jsonl", [{"text": "other"}])
    path = root / "a.jsonl"
    stat = path.stat() if path.exists() else None
    jsonl(path, [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    for file in ("a", "b"):
        os.utime(root / f"{file}.jsonl", ns=(10**18, 10**18))
    assert stat is None or path.stat().st_size == stat.st_size
    source = {"name": "some-texts", "format": "jsonl", "urls": ["${root}/{a,b}.jsonl"]}
    return corpus(root, {**source, "filters": {"deny_text": ["not"]}})


@pytest.mark.usefixtures("local_ray")
def test_retry_and_the_build_after_it(tmp_path: Path) -> None:
    """A file mended in place keeps its listing; what came out makes another version, and nothing else does."""
    config = rows(tmp_path, "one", "    ", "    ", "not!")
    before = build.run(config).manifest
    assert before is not None and before.totals.samples == 2 and build.finished(config) == before
    same = retry(config, ALL)
    assert (same.files, same.recovered, same.still) == (1, 0, {"text empty": 2, "filtered: text": 1})
    assert build.finished(config) == before, "nothing came out otherwise"
    rows(tmp_path, "one", "two ", "    ", "now!")
    assert build.finished(config) == before, "listings do not tell"
    found = retry(config, Wanted(source="some-texts", reason="text"))
    assert (found.files, found.recovered, found.still, found.new) == (1, 2, {"text empty": 1}, 0)
    assert build.finished(config) is None
    report = build.run(config)
    after = report.manifest
    assert after is not None and after.totals.samples == 4 and after.version != before.version
    assert report.reused["files"] == 2 and after.accounts["some-texts"].refused == {"text empty": 1}
    assert summary(str(tmp_path), ALL).total() == 1
    assert build.finished(config) == after
    again = retry(config, Wanted(reason="filtered"))
    assert again.files == 0 and build.finished(config) == after


@pytest.mark.usefixtures("local_ray")
def test_retry_of_a_file_that_was_changed(tmp_path: Path) -> None:
    config = ingested(mixed(tmp_path))
    tar(tmp_path / "raw" / "a.tar", [*pairs(0, 3), ("bad.png", GOOD), ("bad.txt", b"x")])
    os.utime(tmp_path / "raw" / "a.tar", (5, 5))
    found = retry(config, Wanted(reason="image unreadable"))
    assert (found.files, found.recovered, found.still) == (1, 2, {})
    assert ingest.run(config).made == 0
