"""Units: found by listing, named the same wherever they lie, read with their companions."""

import os
from pathlib import Path

import fsspec
import pytest

from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from workflows.corpus.units import Unit, list_units, opened
from workflows.errors import OneFlowError, UsageError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in ("00000", "00001"):
        tar(tmp_path / "raw" / "a" / f"{name}.tar", pairs(0, 2))
        tar(tmp_path / "raw" / "b" / f"{name}.tar", pairs(2, 2))
    (tmp_path / "raw" / "a" / "00000.parquet").write_bytes(b"table")
    (tmp_path / "raw" / "a" / "00000_stats.json").write_bytes(b"{}")
    return tmp_path


def names(root: Path | str, *urls: str, kind: str = "webdataset") -> list[str]:
    config = corpus(root, {"name": "s", "format": kind, "urls": list(urls)})
    return [unit.name for unit in list_units(config)]


def test_patterns(raw: Path) -> None:
    every = ["a/00000.tar", "a/00001.tar", "b/00000.tar", "b/00001.tar"]
    assert names(raw, "${root}/raw/*/*.tar") == every
    assert names(raw, "${root}/raw/{a,b}/0000{0..1}.tar") == every
    assert names(raw, "${root}/raw/a/*") == ["00000.tar", "00001.tar"]
    assert names(raw, "${root}/raw/b") == ["b/00000.tar", "b/00001.tar"]
    assert names(raw, f"file://{raw}/raw/a/00001.tar") == ["00001.tar"]


def test_companions_belong_to_a_unit(raw: Path) -> None:
    config = corpus(raw, {"name": "s", "format": "webdataset", "urls": ["${root}/raw/a/*.tar"]})
    first, second = list_units(config)
    assert [Path(file.url).name for file in first.files] == ["00000.parquet", "00000.tar"]
    assert [Path(file.url).name for file in second.files] == ["00001.tar"]


def test_what_is_not_there_is_told(raw: Path) -> None:
    with pytest.raises(OneFlowError, match="source s: there is no webdataset input"):
        names(raw, "${root}/raw/c/*.tar")
    with pytest.raises(OneFlowError, match="there is no webdataset input"):
        names(raw, "${root}/nowhere/a.tar")
    with pytest.raises(OneFlowError, match="no folder input"):
        names(raw, "${root}/raw", kind="folder")
    with pytest.raises(UsageError, match="would both be named 00000"):
        names(raw, "${root}/raw/a/*.tar", "${root}/raw/b/*.tar")


def only(root: Path | str, kind: str, url: str) -> Unit:
    (unit,) = list_units(corpus(root, {"name": "s", "format": kind, "urls": [url]}))
    return unit


def test_the_part_changes_with_the_file_and_not_with_the_place(raw: Path, tmp_path: Path) -> None:
    config = corpus(raw)
    path = raw / "raw" / "one.tar"
    tar(path, pairs(0, 1))
    (unit,) = [u for u in list_units(config) if u.name == "one.tar"]
    before = unit.part(config)
    moved = corpus("/elsewhere")
    assert unit.part(moved) == before
    assert unit.part(corpus(raw, limits={"text_bytes": 9})) != before
    os.utime(path, (1, 1))
    (touched,) = [u for u in list_units(config) if u.name == "one.tar"]
    assert touched.part(config) != before


@pytest.mark.parametrize("kind", ["webdataset", "jsonl", "folder"])
def test_remote_units_give_the_same(tmp_path: Path, kind: str) -> None:
    """A unit on another filesystem gives the same rows and the same digest as on this one."""
    local = tmp_path / "raw"
    if kind == "webdataset":
        main = tar(local / "x.tar", pairs(0, 3))
    elif kind == "jsonl":
        main = jsonl(local / "x.jsonl", [{"text": "t", "image": f"{i}.png"} for i in range(3)])
        for i in range(3):
            (local / "x").mkdir(exist_ok=True)
            (local / "x" / f"{i}.png").write_bytes(png(i))
    else:
        main = local / "x"
        main.mkdir(parents=True)
        for name, data in pairs(0, 3):
            (main / name).write_bytes(data)
    remote = fsspec.filesystem("memory")
    place = f"/{tmp_path.name}-{kind}"
    remote.put(str(local), place, recursive=True)
    here = only(tmp_path, kind, str(main))
    there = only("memory://", kind, f"memory:/{place}/{main.name}")
    assert there.stem == here.stem == "x" and there.size == here.size
    found = []
    for root, url in ((str(tmp_path), str(main)), ("memory://", f"memory:/{place}/{main.name}")):
        config = corpus(root, {"name": "s", "format": kind, "urls": [url]})
        with opened(config, only(root, kind, url)) as rows:
            found.append((list(rows), rows.sha256()))
    assert found[0] == found[1] and len(found[0][0]) == 3
