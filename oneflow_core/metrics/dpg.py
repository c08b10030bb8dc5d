"""DPG-Bench and DSG scores: questions about a picture that depend on each other, answered yes or no.

The layout is that of DPG-Bench (Hu et al. 2024, ELLA) and DSG-1k (Cho et al. 2024): one row a question, with the
numbers of the questions that must hold before it makes sense. Two rules are in use, and both are given:

dpg     ELLA's script: a question counts as "no" where a parent does, in the order of the file, so that a "no" also
        reaches grandchildren.
dsg     DSG's own: only the raw answers of the direct parents are looked at.

Only the word "yes" counts as yes. Categories are means of raw answers over all questions. The first row of a file is
scored like any other (ELLA's script leaves it out).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

COLUMNS = (
    "item_id",
    "text",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "question_natural_language",
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question about the picture of a prompt."""

    number: int
    text: str
    parents: tuple[int, ...]
    """Numbers of the questions that it depends on."""
    category: str
    """entity, attribute, relation, global, other."""
    detail: str
    """Such as "attribute - color"."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its questions, in the order of the file."""

    text: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """A file of questions. `refused` names the prompts that cannot be scored, and why."""

    prompts: Mapping[str, Prompt]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PromptScore:
    """Shares of the questions of one picture, 0 to 1."""

    dpg: float
    dsg: float
    plain: float
    """Without dependencies."""


@dataclass(frozen=True, slots=True)
class BenchScore:
    """Means over prompts, 0 to 100, and the raw answers by category."""

    dpg: float
    dsg: float
    plain: float
    categories: Mapping[str, float]
    details: Mapping[str, float]
    each: Mapping[str, PromptScore] = field(repr=False)


def read_questions(lines: Iterable[str]) -> Questions:
    """The questions of a CSV with the columns of DPG-Bench.

    A prompt with a malformed dependency ("5, right"), with one on a question that is not there, or with two questions
    of a number is refused, and said.

    Raises:
        ValueError: a column is missing.
    """
    rows = csv.DictReader(lines)
    if missing := [name for name in COLUMNS if name not in (rows.fieldnames or [])]:
        raise ValueError(f"no column {missing[0]!r}; the file has {', '.join(rows.fieldnames or [])}")
    prompts: dict[str, list[Question]] = defaultdict(list)
    texts: dict[str, str] = {}
    refused: dict[str, str] = {}
    for row in rows:
        name = row["item_id"]
        texts[name] = row["text"]
        try:
            number = int(row["proposition_id"])
            parents = tuple(int(cell) for cell in row["dependency"].split(","))
        except ValueError:
            refused[name] = (
                f"question {row['proposition_id']}: dependency {row['dependency']!r} is no list of numbers"
            )
            continue
        broad, fine = row["category_broad"].strip(), row["category_detailed"].strip()
        kept = tuple(p for p in parents if p != 0)
        detail = f"{broad} - {fine}"
        prompts[name].append(Question(number, row["question_natural_language"], kept, broad, detail))
    for name, questions in prompts.items():
        numbers = [q.number for q in questions]
        lost = sorted({p for q in questions for p in q.parents} - set(numbers))
        if name not in refused and lost:
            refused[name] = f"a question depends on question {lost[0]}, which is not there"
        elif name not in refused and len(set(numbers)) < len(numbers):
            refused[name] = "two questions have one number"
    kept_prompts = {n: Prompt(texts[n], tuple(qs)) for n, qs in prompts.items() if n not in refused}
    return Questions(kept_prompts, refused)


def is_yes(answer: str) -> bool:
    """Whether an answer counts as yes: the word alone, in any case, white space around it aside."""
    return answer.strip().lower() == "yes"


def score_prompt(prompt: Prompt, answers: Mapping[int, bool]) -> PromptScore:
    """The questions of one picture; `answers` by number, True for yes.

    Raises:
        KeyError: a question was not answered.
    """
    raw = [answers[q.number] for q in prompt.questions]
    held = dict(answers)
    for question in prompt.questions:
        if not all(held[p] for p in question.parents):
            held[question.number] = False
    direct = [answers[q.number] and all(answers[p] for p in q.parents) for q in prompt.questions]
    count = len(raw)
    return PromptScore(
        sum(held[q.number] for q in prompt.questions) / count, sum(direct) / count, sum(raw) / count
    )


def score_bench(prompts: Mapping[str, Prompt], answers: Mapping[str, Mapping[int, bool]]) -> BenchScore:
    """All prompts that were answered, one picture each.

    Raises:
        ValueError: nothing was answered.
    """
    each = {name: score_prompt(prompts[name], found) for name, found in answers.items() if name in prompts}
    if not each:
        raise ValueError("no answers to any of the prompts")
    broad: dict[str, list[bool]] = defaultdict(list)
    fine: dict[str, list[bool]] = defaultdict(list)
    for name in each:
        for question in prompts[name].questions:
            broad[question.category].append(answers[name][question.number])
            fine[question.detail].append(answers[name][question.number])
    return BenchScore(
        _percent(s.dpg for s in each.values()),
        _percent(s.dsg for s in each.values()),
        _percent(s.plain for s in each.values()),
        {name: _percent(found) for name, found in sorted(broad.items())},
        {name: _percent(found) for name, found in sorted(fine.items())},
        each,
    )


def _percent(values: Iterable[float]) -> float:
    held = list(values)
    return 100 * sum(held) / len(held)
