"""Garbage collection: what is referred to, young or held stays; a run that is killed leaves whole versions."""

import os
import time
from pathlib import Path

import pytest

from oneflow_core.data.manifest import Manifest
from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, TextSegment
from tests.conftest import RunningStack
from tests.workflows.corpus.written import write_version
from workflows import storage
from workflows.corpus import gc
from workflows.corpus.gc import collect
from workflows.corpus.verify import verify
from workflows.errors import OneFlowError

DAY = 86_400


def samples(*names: str) -> list[Sample]:
    return [Sample(Document(name, "s", "MIT", (TextSegment(name),))) for name in names]


def part(root: Path, name: str) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"part")
    return name


def age(root: Path, days: float, *names: str) -> None:
    then = time.time() - days * DAY
    for name in names:
        for path in [root / name, *(root / name).rglob("*")]:
            os.utime(path, (then, then))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two versions that share a part, a part of nobody, one more that is young, and a build that was never finished."""
    root = tmp_path / "root"
    shared, old, new = (part(root, f"documents/s/part-{n}.parquet") for n in ("shared", "old", "new"))
    part(root, "documents/s/part-nobody.parquet")
    part(root, "latents/c@1/64px/part-young.parquet")
    write_version(root / "shards/c/v1", samples("a", "b"), 1, parts=[shared, old])
    write_version(root / "shards/c/v2", samples("a", "c"), 1, parts=[shared, new])
    (root / "shards/c/latest").write_text("v2\n")
    (root / "shards/c/v3").mkdir()
    (root / "shards/c/v3/shard-000000.tar").write_bytes(b"half")
    age(root, 3, "documents", "shards/c/v1", "shards/c/v3")
    age(root, 2, "shards/c/v2")
    return root


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def test_what_nothing_refers_to_goes(root: Path) -> None:
    before = files(root)
    told = collect(str(root), dry_run=True)
    assert files(root) == before
    report = collect(str(root))
    gone = {"documents/s/part-nobody.parquet", "shards/c/v3/shard-000000.tar"}
    assert (
        before - files(root)
        == gone
        == {s.path for s, _ in report.removed}
        == {s.path for s, _ in told.removed}
    )
    assert report.bytes == 8 and report.kept[gc.YOUNG] == 1
    assert collect(str(root)).removed == ()


def test_what_no_build_writes_is_left_alone(root: Path) -> None:
    """People keep their sources under the root too, in folders of any name."""
    own = [
        "images/photos/0001.jpg",
        "shards/raw/000/00000.tar",
        "documents/s/notes.txt",
        "images/s/part-x.parquet",
    ]
    for name in own:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"mine")
    gone = {stored.path for stored, _ in collect(str(root), grace_s=0).removed}
    assert gone & set(own) == {"images/s/part-x.parquet"}


def test_without_grace_the_young_goes_too(root: Path) -> None:
    collect(str(root), grace_s=0)
    assert not (root / "latents/c@1/64px/part-young.parquet").exists()
    assert verify(str(root / "shards/c/v1"), deep=True).samples == 2


def test_only_the_newest_versions_are_kept_where_that_is_asked(root: Path) -> None:
    collect(str(root), keep=1)
    assert {f for f in files(root) if f.startswith("shards/c/v1")} == set()
    assert {f for f in files(root) if f.startswith("documents")} == {
        "documents/s/part-shared.parquet",
        "documents/s/part-new.parquet",
    }
    assert verify(str(root / "shards/c"), deep=True).samples == 2


def test_the_latest_stays_even_if_it_is_the_oldest(root: Path) -> None:
    (root / "shards/c/latest").write_text("v1\n")
    collect(str(root), keep=1)
    assert {Manifest.load(str(root / "shards/c" / v)).totals.samples for v in ("v1", "v2")} == {2}


@pytest.mark.parametrize("after", range(8))
def test_stopped_anywhere_every_manifest_is_whole_and_the_next_run_ends_it(
    root: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = after

    def dying(url: str) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        storage.delete(url)

    with monkeypatch.context() as patched:
        patched.setattr(gc, "delete", dying)
        with pytest.raises(KeyboardInterrupt):
            collect(str(root), keep=1)
    for manifest in root.rglob("manifest.json"):
        assert verify(str(manifest.parent), deep=True).samples == 2
    collect(str(root), keep=1)
    assert not list(root.rglob("v1/*")) and not (root / "documents/s/part-old.parquet").exists()


def test_a_root_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(OneFlowError, match="nothing is there"):
        collect(str(tmp_path / "none"))


def test_ages_and_deletions_on_s3(stack: RunningStack, tmp_path: Path) -> None:
    root = stack.url("gc-root")
    write_version(tmp_path / "c" / "v1", samples("a"), 1)
    for path in (tmp_path / "c" / "v1").iterdir():
        storage.put_atomic(f"{root}/shards/c/v1/{path.name}", path.read_bytes())
    storage.put_atomic(f"{root}/documents/s/part-x.parquet", b"x")
    assert collect(root).kept == {gc.YOUNG: 1, "version": 6}
    time.sleep(1.1)
    assert [s.path for s, _ in collect(root, grace_s=1).removed] == ["documents/s/part-x.parquet"]
    assert not storage.exists(f"{root}/documents/s/part-x.parquet")
    assert verify(f"{root}/shards/c/v1").samples == 1
