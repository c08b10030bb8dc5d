"""VQA accuracy against the official script's figures, and by hand."""

from __future__ import annotations

import pytest

from oneflow_core.metrics.vqa import normalised, vqa_accuracy
from tests.reference import shared_json


def test_answers_are_normalised_as_the_official_script_does() -> None:
    for raw, wanted in shared_json("vqa_textvqa/golden_normalisation.json"):
        assert normalised(raw) == wanted


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("The Two dogs", "2 dogs"),
        ("dont", "don't"),
        ("1,500 people!", "1500 people"),
        ("none", "0"),
        ("a", ""),
    ],
)
def test_normalisation_by_hand(raw: str, wanted: str) -> None:
    assert normalised(raw) == wanted


@pytest.mark.parametrize("name", ["vqa_textvqa", "vqa_vizwiz"])
def test_every_question_scores_as_in_the_official_script(name: str) -> None:
    golden = shared_json(f"{name}/golden_official_vqaeval.json")
    truths = {
        str(a["question_id"]): [t["answer"] for t in a["answers"]]
        for a in shared_json(f"{name}/annotations.json")["annotations"]
    }
    scores = {
        str(p["question_id"]): 100 * vqa_accuracy(p["answer"], truths[str(p["question_id"])])
        for p in shared_json(f"{name}/predictions.json")
    }
    assert scores.keys() == golden["per_question"].keys()
    for question, wanted in golden["per_question"].items():
        assert scores[question] == pytest.approx(wanted, abs=0.005), question
    assert sum(scores.values()) / len(scores) == pytest.approx(golden["overall"], abs=5e-5)


@pytest.mark.parametrize(("agreeing", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_leaving_one_of_ten_people_out(agreeing: int, wanted: float) -> None:
    """With k of ten agreeing, k leave-outs count k - 1: (k min(1, (k-1)/3) + (10-k) min(1, k/3)) / 10."""
    people = ["red"] * agreeing + [f"other {n}" for n in range(10 - agreeing)]
    assert vqa_accuracy("red", people) == pytest.approx(wanted)


def test_answers_on_which_all_agree_are_taken_as_they_are() -> None:
    assert vqa_accuracy("the dog", ["dog"] * 10) == 0
    assert vqa_accuracy("the dog", ["dog"] * 9 + ["cat"]) == 1


def test_a_question_without_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="without answers"):
        vqa_accuracy("yes", [])
