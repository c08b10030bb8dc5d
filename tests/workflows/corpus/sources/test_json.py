"""MMC4 and LLaVA, whole and damaged; JSON in every wrapping that people use."""

import base64
import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.reference import shared
from tests.workflows.corpus.inputs import jsonl, png, tar
from tests.workflows.corpus.sources.reading import read, reasons, seen

PNG = png(1)


def zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.jsonl", data)
    return stream.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": zipped,
}


@pytest.mark.parametrize("suffix", PACKINGS)
def test_rows_in_every_packing(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"row {i}"} for i in range(50)]
    lines = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in rows)
    array = json.dumps(rows, indent=1).encode()
    for name, data in (("a.jsonl", lines), ("b.ndjson", lines), ("c.jsonl", array), ("d.json", array)):
        path = tmp_path / (name + suffix)
        path.write_bytes(PACKINGS[suffix](data))
        drafts, refused = read("jsonl", path)
        assert [seen(d) for d in drafts] == [[(row["text"], "auto")] for row in rows] and not refused
    cut = tmp_path / f"cut.jsonl{suffix}"
    if suffix not in ("", ".zip"):
        cut.write_bytes(PACKINGS[suffix](lines * 200)[:-9])
        drafts, refused = read("jsonl", cut, columns={"id": "none"})
        assert refused["file broken"] == 1
        cut.write_bytes(b"this was never compressed")
        assert read("jsonl", cut)[1].total() == 1


MMC4 = {
    "text_list": ["one", "two", "three"],
    "url": "https://page",
    "image_info": [
        {
            "image_name": "b.png",
            "matched_text_index": 2,
            "matched_sim": 0.27694,
            "raw_url": "https://x/b.png",
        },
        {
            "image_name": "a.png",
            "matched_text_index": 1,
            "matched_sim": 0.5,
            "raw_url": "https://u:p@x/a.png",
        },
    ],
    "similarity_matrix": [[0.1, 0.2, 0.3]],
    "could_have_url_duplicate": 0,
}


@pytest.mark.parametrize("place", ["tar beside", "folder beside", "images: tar", "images: folder"])
def test_mmc4(tmp_path: Path, place: str) -> None:
    path = jsonl(tmp_path / "shard_0.jsonl", [MMC4])
    images = tmp_path / ("shard_0" if "beside" in place else "kept")
    if "tar" in place:
        tar(images.with_suffix(".tar"), [("dir/a.png", png(1)), ("dir/b.png", png(2))])
        where = [str(images.with_suffix(".tar"))]
    else:
        images.mkdir()
        (images / "a.png").write_bytes(png(1))
        (images / "b.png").write_bytes(png(2))
        where = [str(images)]
    options = {} if "beside" in place else {"images": where}
    drafts, refused = read("mmc4", path, **options)
    assert not refused
    assert seen(drafts[0]) == [
        ("one", "auto"),
        (png(1), "auto"),
        ("two", "auto"),
        (png(2), "auto"),
        ("three", "auto"),
    ]
    assert drafts[0].meta == {
        "url": "https://page",
        "image_urls": '["https://x/a.png", "https://x/b.png"]',
        "similarities": "[0.5, 0.2769]",
    }
    renamed = {"s": MMC4["text_list"], "i": MMC4["image_info"]}
    other = jsonl(tmp_path / "other" / "shard_0.jsonl", [renamed])
    mapped = read("mmc4", other, columns={"texts": "s", "images": "i"}, images=where)[0]
    assert seen(mapped[0]) == seen(drafts[0])
    after = seen(read("mmc4", path, placement="after", **options)[0][0])
    assert after == [("one two", "auto"), (png(1), "auto"), ("three", "auto"), (png(2), "auto")]


def test_mmc4_rows_that_are_odd(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"text_list": ["text", "alone"]},
        {"text_list": ["x"], "image_info": [{"image_name": "gone.png", "matched_text_index": 0}]},
        {"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]},
        {"text_list": ["x"], "image_info": [{"image_name": "a.png"}]},
        {"text_list": ["x"], "image_info": "none"},
        {"text_list": ["x"], "image_info": [{"image_name": None, "matched_text_index": 0}]},
        {"text_list": [1]},
        {"text_list": "x"},
        {"text_list": []},
        b"{broken",
    ]
    drafts, refused = read("mmc4", jsonl(tmp_path / "m.jsonl", rows))
    assert seen(drafts[0]) == [("text alone", "auto")] and reasons(drafts[1]) == ["image missing"]
    assert refused == {
        "image matches no sentence": 2,
        "image info malformed": 1,
        "image name not a string": 1,
        "text not a string": 1,
        "columns missing": 1,
        "text empty": 1,
        "row not json": 1,
    }


def test_mmc4_with_images_in_its_lines(tmp_path: Path) -> None:
    info = [
        {"image_base64": base64.b64encode(PNG).decode(), "matched_text_index": 0, "image_name": "gone.png"}
    ]
    rows = [
        {"text_list": ["x"], "images": info},
        {"text_list": ["y"], "image_info": [{**info[0], "image_base64": "?"}]},
    ]
    drafts, _ = read("mmc4", jsonl(tmp_path / "m.jsonl", rows))
    assert seen(drafts[0]) == [(PNG, "auto"), ("x", "auto")]
    assert reasons(drafts[1]) == ["data url malformed"]


def test_an_object_without_its_list_is_told(tmp_path: Path) -> None:
    for number, kind in enumerate(("jsonl", "llava", "vqa", "coco")):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"info": "x" * 100_000, "images": [{"id": 1}]}, indent=1))
        assert read(kind, path) == ([], {"no list of rows": 1})
    late = {
        "info": "x" * 3_000_000,
        "data": [{"question": "q", "answers": ["a"], "image": "a.png", "question_id": 1}],
    }
    path.write_text(json.dumps(late))
    assert len(read("vqa", path)[0]) == len(read("jsonl", path)[0]) == 1


def test_the_real_mmc4_document(tmp_path: Path) -> None:
    path = shared("mmc4_sample") / "docs_shard_0_v2.jsonl"
    row = json.loads(path.read_text())
    names = [info["image_name"] for info in row["image_info"]]
    images = [(name, png(i)) for i, name in enumerate(names)]
    drafts, _ = read("mmc4", path, images=[str(tar(tmp_path / "i.tar", images))])
    assert [c for c, _ in seen(drafts[0])] == [
        row["text_list"][0],
        png(1),
        row["text_list"][1],
        png(0),
        row["text_list"][2],
    ]


LLAVA: list[dict[str, Any]] = [
    {
        "id": "0001",
        "image": "coco/train2017/x.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes."},
        ],
    },
    {
        "id": "2",
        "conversations": [{"from": "human", "value": "No picture."}, {"from": "gpt", "value": "None."}],
    },
    {
        "id": "3",
        "image": ["x.png", "y.png"],
        "conversations": [
            {"role": "user", "content": "Between <image> and <image>?"},
            {"role": "assistant", "content": "Little."},
        ],
    },
    {"id": "4", "conversations": [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}]},
    {"id": "5", "image": "x.png", "conversations": [{"from": "human", "value": "<image>\nAlone"}]},
    {"id": "6", "image": "x.png", "conversations": [{"from": "dog", "value": "Wuff"}]},
    {"id": "7", "image": "x.png"},
    {"id": "8", "image": 5, "conversations": [{"from": "human", "value": "?"}]},
    {"id": "2", "conversations": [{"from": "human", "value": "Again"}, {"from": "gpt", "value": "Again"}]},
]


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_llava(tmp_path: Path, layout: str) -> None:
    images = tmp_path / "coco" / "train2017"
    images.mkdir(parents=True)
    (images / "x.png").write_bytes(png(1))
    (images / "y.png").write_bytes(png(2))
    path = tmp_path / ("l.json" if layout == "array" else "l.jsonl")
    path.write_text(json.dumps(LLAVA) if layout == "array" else "\n".join(map(json.dumps, LLAVA)))
    drafts, refused = read("llava", path, images=[str(images)])
    assert [d.key for d in drafts] == ["0001", "2", "3"]
    assert seen(drafts[0]) == [
        (png(1), "prompt"),
        ("What is it?", "prompt"),
        ("A cat.", "target"),
        ("Sure?", "prompt"),
        ("Yes.", "target"),
    ]
    assert [c for c, _ in seen(drafts[2])] == ["Between", png(1), "and", png(2), "?", "Little."]
    assert drafts[0].meta == {"id": "0001", "image": "coco/train2017/x.png"}
    assert refused == {
        "image missing": 1,
        "answer missing": 1,
        "speaker not known": 1,
        "conversation malformed": 1,
        "image name not a string": 1,
        "key twice": 1,
    }


def test_an_array_that_breaks_keeps_what_came_before(tmp_path: Path) -> None:
    good = [{"id": str(i), **{"conversations": LLAVA[1]["conversations"]}} for i in range(2000)]
    text = json.dumps(good)
    path = tmp_path / "l.json"
    for broken in (
        text[:-2],
        text[: len(text) // 2],
        text[:-1] + ", {oops}]",
        text.replace('"1500"', "nothing"),
    ):
        path.write_text(broken)
        drafts, refused = read("llava", path)
        assert 900 < len(drafts) <= 2000 and refused == {"file broken": 1}
        assert [d.key for d in drafts] == [str(i) for i in range(len(drafts))]
