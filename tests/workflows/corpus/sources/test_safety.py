"""What a source must not make us do: leave its place, follow links, unpack bombs, hang."""

import gzip
import io
import json
import os
import tarfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workflows.corpus.inputs import encoded, jsonl, pairs, png, tar
from tests.workflows.corpus.sources.reading import read, reasons
from workflows.corpus.sources import packed
from workflows.corpus.sources.stored import Digest
from workflows.corpus.sources.tars import is_safe

PNG = png(1)


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def unended(members: list[tuple[str, bytes]]) -> bytes:
    """A tar up to the end of its last member."""
    found = b""
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        found += info.tobuf() + data + bytes(-len(data) % 512)
    return found


def odd_tar(path: Path, members: list[Any]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            info, data = (
                member if isinstance(member[0], tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_paths_links_and_devices_in_tars(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    members = [
        ("../secret.png", PNG),
        ("../secret.txt", b"up"),
        ("/abs.png", PNG),
        ("/abs.txt", b"absolute"),
        ("a/../../b.png", PNG),
        special("link.png", tarfile.SYMTYPE, "../secret.png"),
        ("link.txt", b"a link"),
        special("hard.png", tarfile.LNKTYPE, "good.png"),
        ("hard.txt", b"a hard link"),
        special("null.png", tarfile.CHRTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
        special("folder", tarfile.DIRTYPE),
        ("good.png", PNG),
        ("good.txt", b"good"),
    ]
    drafts, refused = read("webdataset", odd_tar(tmp_path / "a.tar", members))
    assert [d.key for d in drafts] == ["good"]
    assert refused == {"path outside the tar": 3, "link in tar": 2, "special file in tar": 2}


@pytest.mark.parametrize("place", ["folder", "tar"])
def test_names_in_rows_do_not_leave_their_place(tmp_path: Path, place: str) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (inside / "good.png").write_bytes(PNG)
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "loop.png").symlink_to("loop.png")
    os.mkfifo(inside / "pipe.png")
    links = [special("out.png", tarfile.SYMTYPE, "../secret.png"), special("pipe.png", tarfile.FIFOTYPE)]
    odd_tar(tmp_path / "in.tar", [("good.png", PNG), ("../secret.png", PNG), *links])
    names = {
        "good.png": [],
        "./good.png": [],
        "../secret.png": ["image outside its place"],
        "a/../../secret.png": ["image outside its place"],
        str(tmp_path / "secret.png"): ["image outside its place"],
        "/etc/passwd": ["image outside its place"],
        "..\\secret.png": ["image outside its place"],
        "~/x.png": ["image outside its place"],
        "file:///etc/passwd": ["url scheme not allowed"],
        "out.png": ["image outside its place" if place == "folder" else "link in tar"],
        "pipe.png": ["image missing" if place == "folder" else "special file in tar"],
        "loop.png": ["image missing"],
        "up/secret.png": ["image outside its place" if place == "folder" else "image missing"],
        "": ["image missing"],
        ".": ["image missing"],
        "a\0b": ["image outside its place"],
    }
    path = jsonl(tmp_path / "rows" / "r.jsonl", [{"text": "t", "image": name} for name in names])
    where = str(inside if place == "folder" else tmp_path / "in.tar")
    if place == "folder":
        names["file:///etc/passwd"] = ["image missing"]
    else:
        names["file:///etc/passwd"] = ["image missing"]
    drafts, _ = read("jsonl", path, images=[where])
    assert {name: reasons(d) for name, d in zip(names, drafts, strict=True)} == names
    beside, _ = read("jsonl", jsonl(inside / "r.jsonl", [{"text": "t", "image": "file:///etc/passwd"}]))
    assert reasons(beside[0]) == ["url scheme not allowed"]


def test_links_and_pipes_in_folders(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    for name in ("good", "inner", "out", "up", "pipe"):
        (folder / f"{name}.txt").write_text(name)
    (folder / "good.PNG").write_bytes(PNG)
    (folder / "inner.png").symlink_to("good.PNG")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "up.png").symlink_to("../secret.png")
    (folder / "all").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    drafts, refused = read("folder", folder)
    assert [d.key for d in drafts] == ["good", "inner"]
    assert refused == {"image outside its place": 2, "image missing": 1}


@given(st.text(alphabet="./\\ab~", max_size=12))
def test_a_safe_name_stays_below(name: str) -> None:
    if is_safe(name):
        assert os.path.normpath(f"/place/{name}").startswith("/place")


def test_bombs_are_told_before_they_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FREE_BYTES", 8 << 20)
    member = tarfile.TarInfo("big.png")
    member.size = 400 << 20
    header = unended(pairs(0, 1)) + member.tobuf()
    rows = b'{"text": "good"}\n' + b'{"text": "' + b" " * (1 << 20)
    for name, start, kind in (("a.tar.gz", header, "webdataset"), ("b.jsonl.gz", rows, "jsonl")):
        with gzip.open(tmp_path / name, "wb", compresslevel=9) as stream:
            stream.write(start)
            for _ in range(200):
                stream.write(bytes(1 << 20))
        tracemalloc.start()
        drafts, refused = read(kind, tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(drafts) <= 1 and refused["unpacks to too much"] == 1
        assert peak < 150 << 20
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(rows + bytes(200 << 20), "zstd", asbytes=True))
    drafts, refused = read("jsonl", tmp_path / "c.jsonl.zst")
    assert refused["unpacks to too much"] == 1


def test_rows_and_members_that_are_too_long_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows.corpus.sources import json_rows, members, webdataset

    monkeypatch.setattr(json_rows, "ROW_BYTES", 1 << 20)
    monkeypatch.setattr(webdataset, "MEMBER_BYTES", 1 << 20)
    assert members.MEMBER_BYTES > 0
    lines = [b'{"text": "one"}', b'{"text": "' + b"x" * (3 << 20) + b'"}', b'{"text": "two"}']
    drafts, refused = read("jsonl", jsonl(tmp_path / "r.jsonl", lines))
    assert [d.key for d in drafts] == ["row-0", "row-2"] and refused == {"row too large": 1}
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "x" * (3 << 20)}]))
    drafts, refused = read("jsonl", tmp_path / "a.json")
    assert len(drafts) == 1 and refused == {"row too large": 1}
    big = [("a.png", PNG), ("a.txt", b"x" * (2 << 20)), ("b.png", PNG), ("b.txt", b"b")]
    drafts, refused = read("webdataset", tar(tmp_path / "a.tar", big))
    assert [d.key for d in drafts] == ["b"] and refused == {"caption missing": 1}


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(unended(pairs(0, 1)) + info.tobuf(tarfile.GNU_FORMAT))
    started = time.process_time()
    drafts, refused = read("webdataset", path)
    assert len(drafts) == 1 and refused == {"header too large": 1} and time.process_time() - started < 5


@settings(max_examples=60)
@given(st.binary(max_size=400), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 120)), max_size=30))
def test_a_digest_takes_bytes_in_any_order(data: bytes, reads: list[tuple[int, int]]) -> None:
    import hashlib

    digest = Digest(0, len(data))
    for start, count in reads:
        digest.feed(start, data[start : start + count])
        assert digest.hexdigest() == hashlib.sha256(data[: digest.at]).hexdigest()
    digest.feed(digest.at, data[digest.at :])
    assert digest.done and digest.hexdigest() == hashlib.sha256(data).hexdigest()


def small(kind: str) -> tuple[str, bytes]:
    """A small good file of a format: its name and bytes."""
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    if kind == "webdataset":
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, data in pairs(0, 3):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return "a.tar", stream.getvalue()
    if kind in ("parquet", "obelics"):
        rows: list[dict[str, Any]] = [{"image": PNG, "text": f"{i}"} for i in range(6)]
        if kind == "obelics":
            rows = [{"images": [None, "x.png"], "texts": ["a", None], "metadata": "[]"} for i in range(6)]
        pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=2)
        return "a.parquet", stream.getvalue()
    if kind == "huggingface":
        table = pa.Table.from_pylist([{"image": PNG, "text": f"{i}"} for i in range(6)])
        with pa.ipc.new_stream(stream, table.schema) as arrow:
            arrow.write_table(table, max_chunksize=2)
        return "a.arrow", stream.getvalue()
    said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    values: dict[str, Any] = {
        "jsonl": [{"text": "x", "image": "a.png"}, {"question": "q", "answer": "a"}],
        "mmc4": [{"text_list": ["a", "b"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}],
        "llava": [{"id": 1, "image": "a.png", "conversations": said}],
        "vqa": {"questions": [{"question_id": 1, "question": "?", "image_id": 1, "answers": ["a"]}]},
        "coco": {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "c"}],
        },
    }
    return "a.json", json.dumps(values[kind]).encode()


KINDS = ["webdataset", "parquet", "obelics", "huggingface", "jsonl", "mmc4", "llava", "vqa", "coco"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_read_or_refused(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    name, good = small(kind)

    @settings(max_examples=60, derandomize=True, database=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.binary(min_size=1, max_size=6)), max_size=4),
        st.integers(0, len(good)),
        st.booleans(),
    )
    def mutated(changes: list[tuple[int, bytes]], cut: int, whole: bool) -> None:
        data = bytearray(good)
        for at, piece in changes:
            data[at : at + len(piece)] = piece
        path = tmp_path_factory.mktemp("m", numbered=True) / name
        path.write_bytes(data if whole else data[:cut])
        started = time.process_time()
        drafts, refused = read(kind, path)
        assert time.process_time() - started < 10
        assert (
            drafts
            or refused
            or not bytes(data if whole else data[:cut]).strip(b"\0 []{}")
            or kind in ("vqa", "coco")
        )

    mutated()


def wrong_types() -> st.SearchStrategy[Any]:
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a.png")
    names = st.sampled_from(
        ["id", "text", "caption", "image", "images", "texts", "text_list", "image_info", "image_name"]
        + ["matched_text_index", "conversations", "from", "value", "question", "question_id", "answers"]
        + ["answer", "image_id", "segments", "role", "annotations", "questions", "file_name"]
    )
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5)
    )


@pytest.mark.parametrize("kind", ["jsonl", "mmc4", "llava", "vqa", "coco"])
def test_any_json_is_read_or_refused(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("j")

    @settings(max_examples=80, derandomize=True, database=None)
    @given(st.lists(wrong_types(), min_size=1, max_size=4))
    def typed(rows: list[Any]) -> None:
        value: Any = rows
        if kind == "coco":
            value = {"images": rows, "annotations": rows}
        if kind == "vqa":
            value = {"questions": rows, "annotations": rows}
        (folder / "a.json").write_text(json.dumps(value))
        drafts, refused = read(kind, folder / "a.json")
        assert len(drafts) + refused.total() >= 1

    typed()


def test_odd_images_pass_through(tmp_path: Path) -> None:
    """A reader looks at no pixel: bytes come through as they are, with suffixes in capitals, and of every kind."""
    from PIL import Image

    picture = Image.new("RGB", (8, 8))
    kinds = {
        "JPG": "JPEG",
        "JPEG": "JPEG",
        "PNG": "PNG",
        "WEBP": "WEBP",
        "GIF": "GIF",
        "BMP": "BMP",
        "TIFF": "TIFF",
    }
    data = {suffix: encoded(picture, kind) for suffix, kind in kinds.items()}
    members = [m for s, d in data.items() for m in ((f"in/{s}.{s}", d), (f"in/{s}.TXT", s.encode()))]
    drafts, refused = read("webdataset", tar(tmp_path / "A.TAR", members))
    assert not refused and [d.key for d in drafts] == [f"in/{s}" for s in kinds]


def test_a_full_disk_is_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine lacks ends the job; nothing is quarantined for it."""
    import errno

    from workflows.corpus.sources.files import Files

    def full(self: Files, file: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    jsonl(tmp_path / "r.jsonl", [{"text": "t", "image": "a.png"}])
    tar(tmp_path / "r.tar", [("a.png", PNG)])
    monkeypatch.setattr(Files, "copy", full)
    with pytest.raises(OSError, match="No space left"):
        read("jsonl", tmp_path / "r.jsonl")
