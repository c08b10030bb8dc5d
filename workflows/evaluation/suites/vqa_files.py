"""Questions about pictures with people's answers, out of the layouts of VQAv2, TextVQA, VizWiz and GQA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workflows.evaluation.suites.files import File

Rule = Literal["vqa", "gqa"]
"""People's answers with leave-one-out, or one answer to be met exactly."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one picture."""

    question: str
    picture: str
    answers: tuple[str, ...]
    kind: str = ""
    """The dataset's own kind of answer, e.g. yes/no, number, other."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A file's questions by id, the rule that its answers are scored by, and what was refused, with the reason."""

    layout: str
    rule: Rule
    asked: Mapping[str, Asked]
    refused: Mapping[str, str]


def read_questions(questions: File, annotations: File | None) -> Asking:
    """Questions with their answers; UsageError for another layout, or where answers are missing.

    Layouts: VQAv2 (also of TextVQA and VizWiz converted to it) with `annotations` apart; TextVQA's own (`data`);
    VizWiz's own (a list); GQA's (an object of questions by id).
    """
    tree = questions.json()
    if isinstance(tree, dict) and isinstance(tree.get("questions"), list):
        if annotations is None:
            raise questions.refused("its answers lie in a file apart: set data.annotations")
        return _vqa(tree["questions"], annotations)
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        rows = {str(r.get("question_id", n)): r for n, r in enumerate(tree["data"]) if isinstance(r, dict)}
        return _gather("textvqa", "vqa", rows.items(), _textvqa)
    if isinstance(tree, list):
        return _gather("vizwiz", "vqa", ((f"{n:06d}", row) for n, row in enumerate(tree)), _vizwiz)
    if isinstance(tree, dict) and any(isinstance(r, dict) and "imageId" in r for r in tree.values()):
        return _gather("gqa", "gqa", tree.items(), _gqa)
    raise questions.refused("it has the layout of none of VQAv2, TextVQA, VizWiz and GQA")


def _vqa(rows: Iterable[Any], annotations: File) -> Asking:
    tree = annotations.json()
    if not isinstance(tree, dict) or not isinstance(tree.get("annotations"), list):
        raise annotations.refused("it has no annotations")
    answers = {
        str(a["question_id"]): a for a in tree["annotations"] if isinstance(a, dict) and "question_id" in a
    }

    def one(row: Mapping[str, Any]) -> Asked:
        held = answers[str(row["question_id"])]
        said = tuple(str(a["answer"]) for a in held["answers"])
        kind = str(held.get("answer_type") or "")
        return Asked(str(row["question"]), str(row["image_id"]), said, kind)

    named = (
        (str(r.get("question_id")) if isinstance(r, dict) else f"row {n}", r) for n, r in enumerate(rows)
    )
    return _gather("vqa", "vqa", named, one)


def _textvqa(row: Mapping[str, Any]) -> Asked:
    return Asked(str(row["question"]), str(row["image_id"]), tuple(str(a) for a in row["answers"]))


def _vizwiz(row: Mapping[str, Any]) -> Asked:
    said = tuple(str(a["answer"]) for a in row["answers"])
    return Asked(str(row["question"]), str(row["image"]), said, str(row.get("answer_type") or ""))


def _gqa(row: Mapping[str, Any]) -> Asked:
    types = row.get("types")
    kind = str(types.get("structural") or "") if isinstance(types, dict) else ""
    return Asked(str(row["question"]), str(row["imageId"]), (str(row["answer"]),), kind)


def _gather(layout: str, rule: Rule, rows: Iterable[tuple[str, Any]], read: Any) -> Asking:
    asked: dict[str, Asked] = {}
    refused: dict[str, str] = {}
    for name, row in rows:
        try:
            if name in asked:
                raise ValueError("the question's id comes twice")
            one: Asked = read(row)
            if not one.answers:
                raise ValueError("no answers")
            asked[name] = one
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            refused[name] = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return Asking(layout, rule, asked, refused)
