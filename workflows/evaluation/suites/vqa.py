"""Questions about pictures: VQA accuracy by the official rule, or GQA's exact answers, 0 to 100."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oneflow_core.metrics.control import derangement
from oneflow_core.metrics.vqa import vqa_accuracy
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.files import Pictures, chosen, read, shown
from workflows.evaluation.suites.loading import Loaded, Loader, item, notes_of, rules_of
from workflows.evaluation.suites.vqa_files import Asked, read_questions

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "vqa"
NAMES = {"vqa": "vqa/vqa_rule", "gqa": "vqa/gqa_rule"}
"""Figures by rule: one of another rule has another name."""
RULES = {
    "vqa": "VQA accuracy, leave-one-out over people",
    "gqa": "GQA accuracy, equal to the one answer",
}
REFERENCES = {
    "vqa": "GT-Vision-Lab/VQA vqaEval.py @a013f00",
    "gqa": "GQA eval.py (accuracy alone)",
}


def judge(
    batch: Sequence[Item], outputs: Sequence[Output], *, rules: Mapping[str, Any] | None = None, **_: Any
) -> Judged:
    """Scores every answer; a failed item is wrong."""
    held = rules or {}
    points = [0.0 if o.error else _score(i, o.text) for i, o in zip(batch, outputs, strict=True)]
    name = NAMES[json.loads(batch[0].truth)["rule"]] if batch else ""
    scores = [
        {name: score} | ({f"{name}/{i.detail}": score} if i.detail else {})
        for i, score in zip(batch, points, strict=True)
    ]
    return Judged(batch, outputs, scores, [o.text for o in outputs], held, notes_of(held, "questions"), name)


def figures(judged: Judged) -> dict[str, Figure]:
    """Accuracy of all questions and of each kind; `shuffled` are the answers to other questions."""
    if not judged.items:
        return {}
    controls: dict[str, float] = {}
    if len(judged.items) > 1:
        order = derangement(len(judged.items), np.random.default_rng(len(judged.items)))
        other = [_score(i, judged.readings[place]) for i, place in zip(judged.items, order, strict=True)]
        controls = {"shuffled": float(np.mean(other))}
    name = str(judged.context)
    found = {name: Figure(judged.mean(name), controls)}
    for kind in sorted({i.detail for i in judged.items} - {""}):
        found[f"{name}/{kind}"] = Figure(judged.mean(f"{name}/{kind}"))
    return found


def _score(item: Item, answer: str) -> float:
    truth = json.loads(item.truth)
    if truth["rule"] == "gqa":
        return 100.0 * (answer.strip() == truth["answers"][0])
    return 100 * vqa_accuracy(answer, truth["answers"])


def _load(config: EvaluateConfig) -> Loaded:
    """One item a question; those of one picture are one group."""
    data = config.data
    questions = read("questions", data.questions, SUITE)
    annotations = read("annotations", data.annotations, SUITE) if data.annotations else None
    asking = read_questions(questions, annotations)
    if not asking.asked:
        raise questions.refused(
            f"no question can be asked; {next(iter(asking.refused.values()), 'it is empty')}"
        )
    names = chosen(asking.asked, config.limit, config.seed)
    pictures = Pictures("images", data.images, SUITE)
    of = {name: asking.asked[name].picture for name in names}
    seen = shown(pictures, dict.fromkeys(of.values()), data)
    refused = {name: seen.refused[picture] for name, picture in of.items() if picture in seen.refused}
    made = [
        _item(config, name, asking.asked[name], asking.rule, seen.pictures[picture])
        for name, picture in of.items()
        if name not in refused
    ]
    files = {"questions": questions} | ({"annotations": annotations} if annotations else {})
    return Loaded(
        made,
        rules_of(
            config,
            files,
            {**asking.refused, **refused},
            rule=RULES[asking.rule],
            reference=REFERENCES[asking.rule],
            layout=asking.layout,
            instruction=data.instruction,
            longest_side=data.longest_side,
            pictures={"sha256": seen.sha256},
        ),
    )


def _item(config: EvaluateConfig, name: str, asked: Asked, rule: str, picture: bytes) -> Item:
    question = f"{asked.question} {config.data.instruction}".strip()
    truth = json.dumps({"rule": rule, "answers": asked.answers}, ensure_ascii=False)
    kind = asked.kind.replace("/", "_").replace(" ", "_")
    return item(config, SUITE, name, (picture, question), "text", truth, group=asked.picture, detail=kind)


_loader = Loader(_load)
items, rules = _loader.items, _loader.rules
