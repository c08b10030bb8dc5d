"""DPG-Bench and DSG scores against ELLA's and DSG's own scripts on real answers, and by hand."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace

import pytest

from oneflow_core.metrics.dpg import (
    COLUMNS,
    Prompt,
    Question,
    is_yes,
    read_questions,
    score_bench,
    score_prompt,
)
from tests.reference import shared, shared_json


@pytest.mark.parametrize("model", ["mplug", "instructblip"])
def test_both_rules_give_what_their_scripts_give(model: str) -> None:
    golden = shared_json(f"dsg1k/golden_{model}_sd2dot1.json")
    with shared("dsg1k/dsg1k_questions.csv").open(newline="") as file:
        questions = read_questions(file)
    assert sorted(questions.refused) == sorted(
        golden["excluded_malformed_dependency"] + golden["excluded_dangling_parent"]
    )
    answers: dict[str, dict[int, bool]] = defaultdict(dict)
    with shared(f"dsg1k/vqa_answers_{model}_sd2dot1.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            answers[row["item_id"]][int(row["question_id"])] = is_yes(row["answer"])
    numbers = {name: {q.number for q in p.questions} for name, p in questions.prompts.items()}
    found = score_bench(
        questions.prompts, {n: a for n, a in answers.items() if n in numbers and a.keys() == numbers[n]}
    )
    assert found.each.keys() == golden["items"].keys()
    for name, wanted in golden["items"].items():
        assert found.each[name].dpg == pytest.approx(wanted["dpg_score"])
        assert found.each[name].dsg == pytest.approx(wanted["dsg_with_dependency"])
        assert found.each[name].plain == pytest.approx(wanted["without_dependency"])
    assert found.dpg == pytest.approx(golden["DPG-Bench score"])
    assert found.dsg == pytest.approx(golden["DSG score"])
    assert found.categories == pytest.approx(golden["L1"])
    assert found.details == pytest.approx(golden["L2"])


def chain(*parents: int) -> Prompt:
    """Questions 1, 2, ... where question n depends on the n-th of `parents`; 0 is none."""
    made = [Question(n, "?", (p,) if p else (), "entity", "entity - x") for n, p in enumerate(parents, 1)]
    return Prompt("p", tuple(made))


def test_a_no_reaches_grandchildren_under_one_rule_only() -> None:
    score = score_prompt(chain(0, 1, 2), {1: False, 2: True, 3: True})
    assert (score.dpg, score.dsg, score.plain) == (0, pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_a_no_is_passed_on_in_the_order_of_the_file() -> None:
    """A child that stands before its parent's own fall is not zeroed by it."""
    prompt = chain(0, 1, 2)
    turned = replace(prompt, questions=(prompt.questions[0], prompt.questions[2], prompt.questions[1]))
    assert score_prompt(turned, {1: False, 2: True, 3: True}).dpg == pytest.approx(1 / 3)


@pytest.mark.parametrize(("answer", "yes"), [("yes", True), (" Yes\n", True), ("yes.", False), ("no", False)])
def test_only_the_word_yes_counts(answer: str, yes: bool) -> None:
    assert is_yes(answer) is yes


def rows(*cells: tuple[str, str]) -> list[str]:
    lines = [f'p,text,{number},"{parents}",entity,whole,is it?' for number, parents in cells]
    return [",".join(COLUMNS), *lines]


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ((("1", "0"), ("2", "1, right")), "no list of numbers"),
        ((("1", "0"), ("2", "7")), "question 7, which is not there"),
        ((("1", "0"), ("1", "0")), "one number"),
    ],
)
def test_prompts_that_cannot_be_scored_are_refused_with_a_reason(
    cells: tuple[tuple[str, str], ...], why: str
) -> None:
    questions = read_questions(rows(*cells))
    assert not questions.prompts and why in questions.refused["p"]


def test_the_first_row_counts_like_any_other() -> None:
    assert [q.number for q in read_questions(rows(("1", "0"), ("2", "1"))).prompts["p"].questions] == [1, 2]


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'dependency'"):
        read_questions(["item_id,text,proposition_id", "a,b,1"])
