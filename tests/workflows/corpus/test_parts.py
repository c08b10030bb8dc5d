"""Listings may be behind what was written: what is known by name is asked for by name."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from oneflow_core.data.manifest import Manifest
from tests.workflows.corpus.test_gc import samples
from tests.workflows.corpus.written import write_version
from workflows.corpus.build import _whole
from workflows.corpus.parts import list_parts, write_part, wrote


def behind(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """Listings lack these."""
    listed = LocalFileSystem.ls

    def ls(self: LocalFileSystem, path: str, detail: bool = False, **rest: Any) -> list[Any]:
        found = listed(self, path, detail=detail, **rest)
        return [f for f in found if not (f["name"] if detail else f).endswith(hidden)]

    monkeypatch.setattr(LocalFileSystem, "ls", ls)


def test_what_was_written_here_is_found_though_no_listing_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"{tmp_path}/documents/s"
    for name in ("part-a", "part-b"):
        write_part(f"{folder}/{name}.parquet", pa.table({"x": [1]}), {})
    with monkeypatch.context() as patched:
        behind(patched, "part-b.parquet")
        assert list(list_parts(str(tmp_path), "documents", "s")) == ["part-a"], "written by somebody else"
        wrote(folder, ["part-b", "part-gone"])
        assert list_parts(folder) == {n: f"{folder}/{n}.parquet" for n in ("part-a", "part-b")}
    Path(folder, "part-b.parquet").unlink()
    assert list(list_parts(folder)) == ["part-a"], "removed since"


def test_a_version_is_whole_though_no_listing_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "v", samples("a", "b"), 1)
    manifest = Manifest.load(str(tmp_path / "v"))
    with monkeypatch.context() as patched:
        behind(patched, "shard-000001.tar", "shard-000000.index.arrow")
        assert _whole(manifest)
    tar = tmp_path / "v" / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert not _whole(manifest)
    tar.unlink()
    assert not _whole(manifest)
