"""VQA and COCO, whose halves are joined: in all their layouts, whole and damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference import shared
from tests.workflows.corpus.inputs import png, tar
from tests.workflows.corpus.sources.reading import read, reasons, seen

PNG = png(1)


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


def test_damage_in_one_of_two_lists(tmp_path: Path) -> None:
    """Captions and answers before the damage are kept, the damage and what lacks its other half are told."""
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(3000)]
    captions = [{"id": i, "image_id": i, "caption": "c"} for i in range(3000)]
    text = json.dumps({"images": images, "annotations": captions})
    (tmp_path / "c.json").write_text(text[:-40_000])
    drafts, refused = read("coco", tmp_path / "c.json")
    assert 1000 < len(drafts) < 3000 and refused == {"file broken": 1}
    questions = [{"question_id": i, "question": "?", "image_id": i} for i in range(3000)]
    answers = [{"question_id": i, "answers": [{"answer": "a"}]} for i in range(3000)]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": answers})[:-40_000])
    drafts, refused = read("vqa", tmp_path / "questions.json")
    assert 1000 < len(drafts) < 3000
    assert refused == {"file broken": 1, "answer missing": 3000 - len(drafts)}
    (tmp_path / "annotations.json").write_text("\n".join(map(json.dumps, answers)))
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions})[:-40_000])
    drafts, refused = read("vqa", tmp_path / "questions.json")
    assert 1000 < len(drafts) < 3000 and refused == {"file broken": 1}


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
    mapped, _ = read("coco", path, images=[str(tmp_path / "val2017")], columns={"image": "file_name"})
    assert [seen(d) for d in mapped] == [seen(d) for d in drafts]
    drafts, refused = read(
        "coco", path, images=[str(tmp_path / "val2017")], captions="first", licence="{license.name}"
    )
    assert [(d.key, d.licence) for d in drafts] == [("11", "CC BY")]
    assert refused == {"licence missing": 1, "image not listed": 1}
