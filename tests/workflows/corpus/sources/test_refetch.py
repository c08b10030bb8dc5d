"""Images that rows name by URL, filtered by the rows' columns: what could not be fetched is fetched by a retry."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workflows.corpus.inputs import corpus, png
from tests.workflows.corpus.sources.conftest import Web
from workflows.corpus import ingest, retry
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import UnitReport, reports
from workflows.corpus.parts import read_part
from workflows.corpus.quarantine import Wanted, summary
from workflows.corpus.selection import select
from workflows.corpus.units import list_units

pytestmark = pytest.mark.usefixtures("tasks_in_process")


def table(root: Path, web: Web) -> CorpusConfig:
    """Four rows: three whose pictures may be there, and one whose score is too low."""
    rows = [
        {"url": f"{web.url}/{name}.png", "caption": f"row {name}", "score": score, "LANGUAGE": "en"}
        for name, score in (("a", 0.9), ("b", 0.8), ("c", 0.7), ("low", 0.1))
    ]
    path = root / "rows.parquet"
    if not path.exists():
        pq.write_table(pa.Table.from_pylist(rows), path)
    filters = {"scores": {"score": {"min": 0.5}}, "allow": {"LANGUAGE": ["en"]}}
    source = {"name": "s", "format": "parquet", "urls": [str(path)], "filters": filters}
    return corpus(root / "root", {**source, "fetch": {"retries": 0}})


def ids(report: UnitReport) -> list[str]:
    return [str(doc_id)[-1] for doc_id in read_part(report.url)["doc_id"].to_pylist()]


def test_what_could_not_be_fetched_is_fetched_by_a_retry(web: Web, tmp_path: Path) -> None:
    for name in ("a", "low"):
        (web.folder / f"{name}.png").write_bytes(png(ord(name[0])))
    config = table(tmp_path, web)
    first = ingest.run(config)
    (report,) = first.units
    assert (report.account.read, report.account.kept) == (4, 1)
    assert report.account.refused["filtered: score score"] == 1
    assert sum(report.account.refused.values()) == 3
    assert set(report.columns) >= {"score", "LANGUAGE", "caption"}
    (web.folder / "b.png").write_bytes(png(2))
    assert ingest.run(config).made == 0, "a build alone does not ask again"
    found = retry.retry(config, Wanted())
    assert (found.files, found.recovered, found.new) == (1, 1, 0)
    assert sum(found.still.values()) == 2 and found.still["filtered: score score"] == 1
    (again,) = reports(config, list_units(config))
    assert again.account.kept == 2 and again.sha256 == report.sha256
    assert len(ids(again)) == 2 and set(ids(report)) < set(ids(again))
    assert again.documents_sha256 != report.documents_sha256
    assert summary(str(tmp_path / "root"), Wanted()).total() == 2


def stored(root: Path) -> dict[Path, bytes]:
    """All below but the leases, which tell who was there last."""
    files = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "leases")
    return {path: path.read_bytes() for path in files}


def test_a_retry_that_gives_the_same_leaves_no_trace(web: Web, tmp_path: Path) -> None:
    (web.folder / "a.png").write_bytes(png(1))
    config = table(tmp_path, web)
    ingest.run(config)
    before = stored(tmp_path / "root")
    assert retry.retry(config, Wanted(reason="image")).recovered == 0
    assert stored(tmp_path / "root") == before


def test_near_duplicates_turned_on_later_only_hash(web: Web, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (web.folder / f"{name}.png").write_bytes(png(1, (64, 64) if name == "a" else (96, 96)))
    config = table(tmp_path, web)
    ingest.run(config)
    on = config.model_copy(update={"duplicates": config.duplicates.model_copy(update={"near": "phash"})})
    asked = len(web.asked)
    again = ingest.run(on)
    assert again.made == 0 and len(web.asked) == asked
    assert select(on, again.units).left_out(again.units) == {"s": {"near duplicate": 2}}
    assert select(config, again.units).left_out(again.units) == {"s": {}}
