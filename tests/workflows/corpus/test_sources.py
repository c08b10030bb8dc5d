"""Readers: what users have, well-formed and broken; every row is a draft or a counted refusal."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.reference import shared
from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from workflows.corpus.sources import Draft, Picture, Refused
from workflows.corpus.units import list_units, opened

PNG = png(1)


def read(path: Path | str, **source: Any) -> tuple[list[Draft], Counter[str]]:
    kind = source.get("format") or ("jsonl" if ".jsonl" in str(path) else "webdataset")
    config = corpus("/r", {"name": "s", "format": kind, "urls": [str(path)], **source})
    (unit,) = list_units(config)
    with opened(config, unit) as opened_rows:
        rows = list(opened_rows)
    drafts = [row for row in rows if isinstance(row, Draft)]
    return drafts, Counter(row.reason for row in rows if isinstance(row, Refused))


def texts(draft: Draft) -> list[str]:
    return [content for content, _ in draft.segments if isinstance(content, str)]


def pictures(draft: Draft) -> list[bytes | None]:
    return [content.data for content, _ in draft.segments if isinstance(content, Picture)]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.gz"])
def test_pairs_of_a_tar(tmp_path: Path, name: str) -> None:
    members = [*pairs(0, 3), ("dir/k.jpeg", PNG), ("dir/k.txt", b" late \n"), ("__meta__.json", b"x")]
    drafts, refused = read(tar(tmp_path / name, members))
    assert [draft.key for draft in drafts] == ["00000", "00001", "00002", "dir/k"]
    assert texts(drafts[3]) == ["late"] and pictures(drafts[0]) == [png(0)]
    assert {role for draft in drafts for _, role in draft.segments} == {"auto"}
    assert not refused


def test_captions_and_licences_out_of_json(tmp_path: Path) -> None:
    about = {"label": "beetle", "tags": ["bug", "insect"], "rights": {"name": "MIT"}}
    path = tar(tmp_path / "a.tar", [("k.png", PNG), ("k.json", json.dumps(about).encode())])
    drafts, _ = read(path, caption="{json.label}: {json.tags}", licence="{json.rights.name}")
    assert texts(drafts[0]) == ["beetle: bug, insect"] and drafts[0].licence == "MIT"


def test_samples_of_a_tar_that_are_refused(tmp_path: Path) -> None:
    members = [
        ("a.txt", b"no picture"),
        ("b.png", PNG),
        ("c.png", PNG),
        ("c.jpg", PNG),
        ("c.txt", b"two pictures"),
        ("d.png", PNG),
        ("d.txt", b"\xff\xfe\xfa"),
        ("e.png", PNG),
        ("e.txt", b"once"),
        ("f.png", PNG),
        ("f.txt", b"f"),
        ("e.png", PNG),
        ("e.txt", b"again"),
        ("g.png", PNG),
        ("g.png", PNG),
        ("g.txt", b"g"),
    ]
    drafts, refused = read(tar(tmp_path / "a.tar", members))
    assert [draft.key for draft in drafts] == ["e", "f"]
    assert refused == {
        "image missing": 1,
        "caption missing": 1,
        "several images": 1,
        "text not utf-8": 1,
        "key twice": 2,
    }


def test_tars_that_are_broken(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", pairs(0, 4)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    drafts, refused = read(tmp_path / "cut.tar")
    assert 0 < len(drafts) < 4 and refused == {"file broken": 1}
    damaged = bytearray(whole)
    at = whole.index(b"00002.png")
    damaged[at : at + 200] = b"\x07" * 200
    (tmp_path / "damaged.tar").write_bytes(damaged)
    drafts, refused = read(tmp_path / "damaged.tar")
    assert len(drafts) == 2 and refused == {"file broken": 1}
    for name, data in (
        ("none.tar", b"this is no tar" * 100),
        ("cut.tgz", tar(tmp_path / "b.tgz", pairs(0, 4)).read_bytes()[:900]),
    ):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name)[1]["file broken"] == 1


def test_rows_of_every_kind(tmp_path: Path) -> None:
    tar(tmp_path / "q.tar", [("./x.png", PNG), ("y.png", png(2))])
    rows = [
        {"id": 7, "image": "x.png", "question": "what?", "answer": "a cat", "licence": "MIT"},
        {"segments": [{"text": "one"}, {"image": "y.png"}, {"text": "two", "role": "target"}]},
        {"text": "just text"},
        {"text": "caption", "image": "x.png"},
        {"question": "no picture?", "answer": "none"},
    ]
    drafts, refused = read(jsonl(tmp_path / "q.jsonl", rows))
    assert not refused
    assert [draft.key for draft in drafts] == ["7", "row-1", "row-2", "row-3", "row-4"]
    assert [[role for _, role in draft.segments] for draft in drafts] == [
        ["prompt", "prompt", "target"],
        ["auto", "auto", "target"],
        ["auto"],
        ["auto", "auto"],
        ["prompt", "target"],
    ]
    assert pictures(drafts[0]) == [PNG] and pictures(drafts[1]) == [png(2)]
    assert drafts[0].licence == "MIT" and drafts[1].licence == "CC0-1.0"


def test_columns_of_other_names_and_images_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "x.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    rows = [
        {"file": name, "q": "what?", "a": "this"}
        for name in ("x.png", "../secret.png", "/etc/passwd", "none.png")
    ]
    columns = {"image": "file", "question": "q", "answer": "a"}
    drafts, _ = read(jsonl(tmp_path / "q.jsonl", rows), columns=columns)
    assert [pictures(draft) for draft in drafts] == [[PNG], [None], [None], [None]]


def test_rows_that_are_refused(tmp_path: Path) -> None:
    rows: list[Any] = [
        b"{not json",
        b"[1, 2]",
        b"\xff\xfe",
        b"",
        {"id": 1, "text": "fine"},
        {"id": 1, "text": "the id again"},
        {"question": "no answer"},
        {"text": 5},
        {"text": "t", "image": 5},
        {"segments": []},
        {"segments": [{"sound": "x"}]},
        {"segments": [{"text": "x", "role": "boss"}]},
        b"[" * 100_000,
    ]
    drafts, refused = read(jsonl(tmp_path / "q.jsonl", rows))
    assert len(drafts) == 1
    assert refused == {
        "row not json": 3,
        "row not an object": 1,
        "key twice": 1,
        "columns missing": 1,
        "text not a string": 1,
        "image name not a string": 1,
        "segments malformed": 3,
    }


def test_img2dataset_with_its_failures() -> None:
    folder = shared("img2dataset_output")
    drafts, refused = [], Counter[str]()
    for path in sorted((folder / "webdataset_jpg256").glob("*.tar")):
        some, failed = read(path)
        drafts += some
        refused += failed
    assert len(drafts) == 100 and refused == {
        "upstream failed_to_download": 4,
        "upstream failed_to_resize": 2,
    }
    files = folder / "files_keep_ratio_png"
    drafts, refused = read(files / "00000", format="folder", caption="{json.caption}")
    assert len(drafts) == 38 and refused == {"upstream failed_to_download": 1, "upstream failed_to_resize": 1}
    assert [draft.key for draft in drafts] == sorted(draft.key for draft in drafts)


def test_emoji_tar() -> None:
    path = next(shared("noto_emoji").glob("*.tar"))
    drafts, refused = read(path, caption="{json.label} ({json.tags})")
    assert len(drafts) == 900 and not refused
    assert texts(drafts[0]) == ["beetle (animal, bug, insect)"]
