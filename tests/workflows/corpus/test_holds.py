"""Builders, readers and the collection of garbage, side by side, as real processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oneflow_core.data.manifest import Manifest
from tests.workflows.corpus.inputs import corpus, pairs, tar
from tests.workflows.corpus.test_gc import age, files, part, samples
from tests.workflows.corpus.written import write_version
from workflows.corpus import build, gc
from workflows.corpus.gc import collect
from workflows.corpus.holds import building, collecting, reading
from workflows.corpus.verify import verify
from workflows.errors import OneFlowError

READ = """
import sys, time
from oneflow_core.data.manifest import Manifest
from workflows.corpus.holds import reading
with reading([Manifest.load(sys.argv[1])]):
    print("held", flush=True)
    time.sleep(600)
"""
BUILD = """
import sys, time
from workflows.corpus.holds import building
with building(*sys.argv[1:]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def running(code: str, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An old version, the latest one, and a part of nobody; all of days ago."""
    root = tmp_path / "root"
    old, new = (part(root, f"documents/s/part-{n}.parquet") for n in ("old", "new"))
    part(root, "documents/s/part-nobody.parquet")
    write_version(root / "shards/c/v1", samples("a", "b"), 1, parts=[old])
    write_version(root / "shards/c/v2", samples("a", "c"), 1, parts=[new])
    (root / "shards/c/latest").write_text("v2\n")
    age(root, 3, "documents", "shards/c/v1")
    age(root, 2, "shards/c/v2")
    return root


def test_what_a_reader_holds_stays_until_it_is_killed(root: Path) -> None:
    v1 = str(root / "shards/c/v1")
    with running(READ, v1) as reader:
        report = collect(str(root), keep=1)
        assert {s.path for s, _ in report.removed} == {"documents/s/part-nobody.parquet"}
        assert report.kept["a reader holds it"] == 8
        assert verify(v1, deep=True).samples == 2
        reader.kill()
        reader.wait()
        assert collect(str(root), keep=1).kept["a reader holds it"] == 0
    assert not [f for f in files(root) if f.startswith(("shards/c/v1", "leases/read"))]


def test_a_reader_of_another_machine_is_believed_until_its_lease_expires(root: Path) -> None:
    with reading([Manifest.load(str(root / "shards/c/v1"))]):
        (lease,) = (root / "leases").glob("read-c-v1-*.json")
        tree = json.loads(lease.read_text()) | {"machine": "other"}
    lease.write_text(json.dumps(tree | {"renewed": time.time() - 800}))
    assert collect(str(root), keep=1).kept["a reader holds it"] == 8
    lease.write_text(json.dumps(tree | {"renewed": time.time() - 1000}))
    assert collect(str(root), keep=1).kept["a reader holds it"] == 0
    assert not lease.exists() and not (root / "shards/c/v1/manifest.json").exists()


def test_a_reader_waits_for_the_end_of_a_collection(root: Path) -> None:
    """It put its lease after the collector looked: then it finds out whether its version is still there."""
    manifest = Manifest.load(str(root / "shards/c/v1"))
    with collecting(str(root)):
        reader = subprocess.Popen(
            [sys.executable, "-c", READ, str(root / "shards/c/v1")], stderr=subprocess.PIPE, text=True
        )
        assert reader.stderr is not None
        assert "waiting for the end of a collection of garbage: process" in reader.stderr.readline()
        for name in os.listdir(manifest.base):
            (Path(manifest.base) / name).unlink()
    _, told = reader.communicate(timeout=300)
    assert "it was removed by oneflow corpus gc" in told and reader.returncode == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_store_that_cannot_be_written_is_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.chmod(0o500)
    with reading([Manifest.load(str(root / "shards/c/v1"))]):
        assert "no lease on" in capsys.readouterr().err
    root.chmod(0o700)


def test_a_store_that_refuses_writes_is_read(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "leases").write_text("a file where the directory should be")
    with reading([Manifest.load(str(root / "shards/c/v1"))]):
        assert capsys.readouterr().err.count("no lease on") == 1


def test_under_a_build_its_versions_and_all_parts_stay(root: Path) -> None:
    (root / "shards/c/v3").mkdir()
    (root / "shards/c/v3/shard-000000.tar").write_bytes(b"half")
    age(root, 3, "shards/c/v3")
    before = files(root)
    with running(BUILD, str(root), "c"):
        report = collect(str(root), keep=1, grace_s=0)
        assert report.removed == () and report.kept[gc.BUILDING] == 10
    collect(str(root), keep=1, grace_s=0)
    gone = {f for f in before - files(root) if not f.startswith("leases")}
    assert {f.rpartition("/")[0] for f in gone} == {"documents/s", "shards/c/v1", "shards/c/v3"}


def test_no_build_begins_while_garbage_is_collected(root: Path) -> None:
    with collecting(str(root)):
        build_begins = building(str(root), "c")
        with pytest.raises(OneFlowError, match="garbage is being collected by process"), build_begins:
            pass
        with pytest.raises(OneFlowError, match="garbage is being collected by process"):
            collect(str(root))


def test_two_builders_of_one_corpus(tmp_path: Path) -> None:
    """The second says who builds; it made nothing. When the first is killed, it goes on at once."""
    tar(tmp_path / "raw" / "a.tar", pairs(0, 2))
    config = corpus(tmp_path)
    with running(BUILD, str(tmp_path), "test") as first:
        for stage in (None, "ingest", "shard"):
            with pytest.raises(OneFlowError, match=f"corpus test is being built by process {first.pid}"):
                build.run(config, stage)  # type: ignore[arg-type]
        assert not (tmp_path / "documents").exists()
        first.kill()
        first.wait()
        with building(str(tmp_path), "test"):
            pass


def test_what_killed_writers_left_is_collected(root: Path) -> None:
    left = [
        "shards/c/v2/.manifest.json.0123456789abcdef0123456789abcdef",
        "documents/s/.part-x.parquet.0123456789abcdef0123456789abcdef",
        "shards/c/.latest.0123456789abcdef0123456789abcdef",
    ]
    for name in left:
        part(root, name)
    assert not set(left) & {s.path for s, _ in collect(str(root)).removed}, "they may be in use"
    age(root, 2, *left)
    assert set(left) <= {s.path for s, _ in collect(str(root)).removed}


def test_a_version_that_a_listing_does_not_show_yet_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = gc._listed
    monkeypatch.setattr(
        gc, "_listed", lambda url: (s for s in listed(url) if not s.path.endswith("v2/manifest.json"))
    )
    collect(str(root), grace_s=0)
    assert verify(str(root / "shards/c")).samples == 2 and (root / "documents/s/part-new.parquet").exists()
