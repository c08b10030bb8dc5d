"""MMC4, LLaVA, VQA and COCO, whole and damaged; JSON in every wrapping that people use."""

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


def vqa_v2(folder: Path) -> Path:
    questions = {
        "info": {},
        "data_type": "mscoco",
        "data_subtype": "train2014",
        "questions": [
            {"image_id": 9, "question": "How many?", "question_id": 9000},
            {"image_id": 9, "question": "Which?", "question_id": 9001},
            {"image_id": 8, "question": "No answer?", "question_id": 9002},
        ],
    }
    answers = ["two", "2", "two", "Two"]
    annotations = {
        "annotations": [
            {
                "question_id": 9001,
                "image_id": 9,
                "answer_type": "other",
                "multiple_choice_answer": "b",
                "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(["a", "b", "b", "a"])],
            },
            {
                "question_id": 9000,
                "image_id": 9,
                "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)],
            },
        ]
    }
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps(questions))
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps(annotations))
    (folder / "train2014").mkdir()
    (folder / "train2014" / "COCO_train2014_000000000009.jpg").write_bytes(PNG)
    return folder


def test_vqa_v2(tmp_path: Path) -> None:
    """The questions' annotations are found by name, or where the config says; images by COCO's names."""
    folder = vqa_v2(tmp_path)
    for where in (str(folder), str(folder / "*questions.json")):
        drafts, refused = read("vqa", where, images=[str(folder / "train2014")])
        assert refused == {"answer missing": 1} and [d.key for d in drafts] == ["9000", "9001"]
        assert seen(drafts[0]) == [(PNG, "prompt"), ("How many?", "prompt"), ("two", "target")]
        assert seen(drafts[1])[2] == ("a", "target")
        assert drafts[0].meta["answers"] == '["two", "2", "two", "Two"]'
        assert drafts[1].columns["answer_type"] == "other"
    (folder / "v2_mscoco_train2014_annotations.json").rename(folder / "truth.json")
    drafts, _ = read(
        "vqa",
        folder / "v2_OpenEnded_mscoco_train2014_questions.json",
        annotations=[str(folder / "truth.json")],
        columns={"image": "train2014/COCO_train2014_{image_id:012}.jpg"},
    )
    assert [seen(d)[0][0] for d in drafts] == [PNG, PNG]


def test_text_vqa_and_vizwiz_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ab12.jpg").write_bytes(PNG)
    (tmp_path / "images" / "VizWiz_val_1.jpg").write_bytes(PNG)
    text = {"data": [{"question": "Read?", "image_id": "ab12", "question_id": 5, "answers": ["x", "y", "y"]}]}
    (tmp_path / "text.json").write_text(json.dumps(text))
    answers = [{"answer": "no", "answer_confidence": "yes"}, {"answer": "yes", "answer_confidence": "no"}]
    vizwiz = [{"image": "VizWiz_val_1.jpg", "question": "Is it?", "answers": answers, "answerable": 1}]
    (tmp_path / "vizwiz.json").write_text(json.dumps(vizwiz))
    drafts, _ = read("vqa", tmp_path / "text.json")
    assert seen(drafts[0]) == [(PNG, "prompt"), ("Read?", "prompt"), ("y", "target")] and drafts[0].key == "5"
    drafts, _ = read("vqa", tmp_path / "vizwiz.json")
    assert seen(drafts[0]) == [(PNG, "prompt"), ("Is it?", "prompt"), ("no", "target")]
    assert drafts[0].columns["answerable"] == 1 and drafts[0].meta["image"] == "VizWiz_val_1.jpg"


@pytest.mark.parametrize("name", ["vqa_textvqa", "vqa_vizwiz"])
def test_the_real_vqa_files(name: str, tmp_path: Path) -> None:
    """Every question comes with its answers; the target is an answer that no other outnumbers."""
    folder = shared(name)
    questions = json.loads((folder / "questions.json").read_text())["questions"]
    truth = {
        a["question_id"]: a for a in json.loads((folder / "annotations.json").read_text())["annotations"]
    }
    drafts, refused = read(
        "vqa", folder / "questions.json", images=[str(tar(tmp_path / "none.tar", [("a.png", PNG)]))]
    )
    assert not refused and [int(d.key) for d in drafts] == [q["question_id"] for q in questions]
    for draft, question in zip(drafts, questions, strict=True):
        given = [a["answer"] for a in truth[question["question_id"]]["answers"]]
        target = seen(draft)[-1][0]
        plain = [" ".join(g.lower().split()) for g in given]
        assert target in given and seen(draft)[1][0] == question["question"]
        assert plain.count(plain[given.index(str(target))]) == max(map(plain.count, plain))


@pytest.mark.parametrize("order", [("images", "annotations"), ("annotations", "images")])
def test_coco_captions(tmp_path: Path, order: tuple[str, str]) -> None:
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "000000000001.jpg").write_bytes(PNG)
    lists: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": "000000000001.jpg", "license": 3, "coco_url": "http://c/1", "height": 480},
            {"id": 2, "file_name": "../../etc/passwd", "license": 9},
        ],
        "annotations": [
            {"image_id": 1, "id": 11, "caption": "A cat."},
            {"image_id": 2, "id": 12, "caption": "Outside."},
            {"image_id": 1, "id": 13, "caption": "A cat again."},
            {"image_id": 7, "id": 14, "caption": "Of nothing."},
            {"image_id": 1, "id": 15, "caption": None},
        ],
    }
    path = tmp_path / "captions_val2017.json"
    path.write_text(
        json.dumps({"info": {}, "licenses": [{"id": 3, "name": "CC BY"}], **{k: lists[k] for k in order}})
    )
    drafts, refused = read("coco", path, images=[str(tmp_path / "val2017")])
    assert [d.key for d in drafts] == ["11", "12", "13"]
    assert refused == {"image not listed": 1, "text not a string": 1}
    assert seen(drafts[0]) == [(PNG, "auto"), ("A cat.", "auto")]
    assert reasons(drafts[1]) == ["image outside its place"]
    assert drafts[0].meta == {"image": "000000000001.jpg", "image_id": "1", "url": "http://c/1"}
    assert drafts[0].columns["image.height"] == 480
    drafts, refused = read(
        "coco", path, images=[str(tmp_path / "val2017")], captions="first", licence="{license.name}"
    )
    assert [(d.key, d.licence) for d in drafts] == [("11", "CC BY")]
    assert refused == {"licence missing": 1, "image not listed": 1}
