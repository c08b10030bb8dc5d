"""The suite of questions about pictures, from the datasets' own files to the official script's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reference import shared, shared_json
from workflows.errors import UsageError
from workflows.evaluation.suites import vqa as suite

from .made import FAILED, config, folder, text, written

PEOPLE = ["red"] * 5 + ["blue"] * 2 + ["a", "green", "yellow"]
QUESTIONS = {
    "questions": [
        {"question_id": 7, "image_id": 42, "question": "What colour?"},
        {"question_id": 8, "image_id": 42, "question": "How many?"},
        {"question_id": 9, "image_id": 43, "question": "Is it?"},
    ]
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 7, "answer_type": "other", "answers": [{"answer": a} for a in PEOPLE]},
        {"question_id": 8, "answer_type": "number", "answers": [{"answer": "2"}] * 10},
        {
            "question_id": 9,
            "answer_type": "yes/no",
            "answers": [{"answer": "yes"}] * 6 + [{"answer": "no"}] * 4,
        },
    ]
}


def small(tmp_path: Path, questions: Any = QUESTIONS, annotations: Any = ANNOTATIONS, **values: Any) -> Any:
    images = folder(tmp_path / "images", ["COCO_val2014_000000000042.png", "000000000043.png"])
    files = {"questions": written(tmp_path / "q.json", questions)}
    if annotations is not None:
        files["annotations"] = written(tmp_path / "a.json", annotations)
    return config("vqa", data__images=images, **{f"data__{k}": v for k, v in files.items()}, **values)


@pytest.mark.parametrize(("name", "suffix"), [("vqa_textvqa", ".jpg"), ("vqa_vizwiz", "")])
def test_every_question_scores_as_in_the_official_script(name: str, suffix: str, tmp_path: Path) -> None:
    golden = shared_json(f"{name}/golden_official_vqaeval.json")
    questions = shared_json(f"{name}/questions.json")["questions"]
    images = folder(tmp_path, [f"{q['image_id']}{suffix}" for q in questions], "JPEG")
    files = {k: shared(f"{name}/{k}.json") for k in ("questions", "annotations")}
    given = config("vqa", data__images=images, **{f"data__{k}": v for k, v in files.items()})
    said = {str(p["question_id"]): p["answer"] for p in shared_json(f"{name}/predictions.json")}
    items = suite.items(given)
    outputs = [text(said[item.id.removeprefix("vqa/")]) for item in items]
    judged = suite.judge(items, outputs, rules=suite.rules(given))
    assert len(items) == len(golden["per_question"])
    for item, scores in zip(items, judged.scores, strict=True):
        wanted = golden["per_question"][item.id.removeprefix("vqa/")]
        assert scores["vqa/vqa_rule"] == pytest.approx(wanted, abs=0.005)
    figure = suite.figures(judged)["vqa/vqa_rule"]
    assert figure.estimate.value == pytest.approx(golden["overall"], abs=5e-5)
    assert figure.controls["shuffled"] < figure.estimate.low < figure.estimate.value < figure.estimate.high
    assert not judged.notes and judged.rules["reference"].startswith("GT-Vision-Lab/VQA")


def test_kinds_of_answers_have_figures_of_their_own_and_failures_are_wrong(tmp_path: Path) -> None:
    given = small(tmp_path, data__instruction="In a word.")
    items = suite.items(given)
    assert [item.prompt[1] for item in items] == [
        f"{q['question']} In a word." for q in QUESTIONS["questions"]
    ]
    assert items[0].prompt[0] == items[1].prompt[0] != items[2].prompt[0]
    assert items[0].scene == items[1].scene != items[2].scene
    judged = suite.judge(items, [text(" Red.\n"), FAILED, text("no")])
    found = {name: figure.estimate.value for name, figure in suite.figures(judged).items()}
    assert found["vqa/vqa_rule/other"] == pytest.approx(100)
    assert found["vqa/vqa_rule/number"] == 0 and found["vqa/vqa_rule/yes_no"] == pytest.approx(100)
    assert found["vqa/vqa_rule"] == pytest.approx(200 / 3)


def test_a_failed_item_is_wrong_even_where_people_said_nothing(tmp_path: Path) -> None:
    """An answer of people that normalises to nothing would meet the empty answer of a failed item."""
    people = [{"answer": a} for a in ["a", "the", "an", "a", "the", "dog", "cat", "x", "y", "z"]]
    given = small(tmp_path, annotations={"annotations": [{"question_id": 7, "answers": people}]})
    items = suite.items(given)
    assert suite.judge(items, [text("")]).scores[0]["vqa/vqa_rule"] == 100
    assert suite.judge(items, [FAILED]).scores[0]["vqa/vqa_rule"] == 0
    assert suite.rules(given)["refused"]["count"] == 2


@pytest.mark.parametrize(
    ("layout", "tree", "right"),
    [
        (
            "textvqa",
            {"data": [{"question_id": 1, "image_id": "42", "question": "?", "answers": PEOPLE}]},
            "the red",
        ),
        ("vizwiz", [{"image": "43", "question": "?", "answers": [{"answer": a} for a in PEOPLE]}], "red!"),
        ("gqa", {"05": {"imageId": "42", "question": "?", "answer": "red"}}, " red"),
    ],
)
def test_the_datasets_own_files_are_read(layout: str, tree: Any, right: str, tmp_path: Path) -> None:
    given = small(tmp_path, tree, None)
    items, rules = suite.items(given), suite.rules(given)
    rule = "gqa" if layout == "gqa" else "vqa"
    assert rules["layout"] == layout and len(items) == 1
    assert suite.judge(items, [text(right)]).scores[0][f"vqa/{rule}_rule"] == pytest.approx(100)
    wrong = suite.judge(items, [text("Red" if layout == "gqa" else "brown")])
    assert wrong.scores[0][f"vqa/{rule}_rule"] == 0
    assert ("GQA" in rules["rule"]) == (layout == "gqa")


def test_bad_rows_are_counted_and_bad_files_refused(tmp_path: Path) -> None:
    rows = [*QUESTIONS["questions"], {"question_id": 7, "image_id": 42, "question": "Twice?"}, {"x": 1}, None]
    given = small(tmp_path, {"questions": rows})
    assert len(suite.items(given)) == 3
    rules = suite.rules(given)
    refused = rules["refused"]
    assert refused["count"] == 3 and "twice" in refused["rows"]["7"]
    assert "3 questions were refused" in suite.judge([], [], rules=rules).notes[0]
    for tree in ({}, [], {"questions": []}, {"a": {"b": 1}}, "no json", {"data": [{"question": "?"}]}):
        with pytest.raises(UsageError, match="data.questions"):
            suite.items(small(tmp_path, tree))
    with pytest.raises(UsageError, match=r"set data.annotations"):
        suite.items(small(tmp_path, annotations=None))
    with pytest.raises(UsageError, match="data.annotations"):
        suite.items(small(tmp_path, annotations={"questions": []}))
    given = small(tmp_path)
    with pytest.raises(UsageError, match="data.images is not set"):
        suite.items(given.model_copy(update={"data": given.data.model_copy(update={"images": None})}))
