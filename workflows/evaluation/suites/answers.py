"""Questions about generated pictures, answered by the served model, a model by path, or exactly on shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.encoders.answerer import Answerer
from oneflow_core.shapes import answer as exact_answer
from oneflow_core.shapes import examine
from workflows.errors import UsageError
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.config import JudgeConfig
from workflows.evaluation.suites.encoders import named_by

Ask = Callable[[Sequence[Item]], list[Output]]
"""Asks the deployment under evaluation."""
SHAPES_SIDE = 64


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to each item's questions, "" where there is none, and why some are missing."""

    texts: list[list[str]]
    notes: list[str]


def judge_rule(config: JudgeConfig, served: Mapping[str, str] | None) -> dict[str, Any]:
    """Who answers, for the rules; UsageError where it cannot be loaded."""
    if config.kind == "huggingface":
        return {"kind": config.kind, "id": answerer(config).id}
    if config.kind == "served":
        note = "the judge is the model that is judged: figures of two models do not compare"
        return {"kind": config.kind, "model": dict(served or {}), "note": note}
    return {"kind": config.kind, "id": "oneflow_core.shapes, exact on its own pictures"}


def answered(
    config: JudgeConfig,
    items: Sequence[Item],
    outputs: Sequence[Output],
    pictures: Sequence[NDArray[np.uint8] | None],
    questions: Sequence[Sequence[str]],
    ask: Ask | None,
) -> Answers:
    """The judge's answers; an item without a picture is not asked about, and has none."""
    if config.kind == "served":
        return _served(items, outputs, pictures, questions, ask)
    one = _exact if config.kind == "shapes" else answerer(config).answer
    texts, failed = [], []
    for item, picture, asked in zip(items, pictures, questions, strict=True):
        try:
            texts.append([""] * len(asked) if picture is None else one(picture, asked))
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            texts.append([""] * len(asked))
            failed.append(f"{item.id}: {type(error).__name__}: {error}")
    return Answers(texts, _failures(failed, "items"))


def answerer(config: JudgeConfig) -> Answerer:
    """The judge of `answerer`; UsageError where none is named or it cannot be loaded."""
    if not config.answerer:
        raise UsageError(
            "judge.answerer",
            "it is not set",
            'name a ViLT, a BLIP or an image-text-to-text model, or set judge.kind to "served" (the model itself) '
            'or "shapes"',
        )
    return _answerer(config.answerer, config.device)


@lru_cache(1)
def _answerer(path: str, device: str) -> Answerer:
    with named_by("judge.answerer"):
        return Answerer.from_pretrained(path, device)


def _exact(picture_HWC: NDArray[np.uint8], questions: Sequence[str]) -> list[str]:
    """From what the shapes reader sees; a picture that is no scene has no answers."""
    if picture_HWC.shape[:2] != (SHAPES_SIDE, SHAPES_SIDE):
        return [""] * len(questions)
    scene = examine(picture_HWC).scene
    return [(exact_answer(q, scene) or "") if scene else "" for q in questions]


def _served(
    items: Sequence[Item],
    outputs: Sequence[Output],
    pictures: Sequence[NDArray[np.uint8] | None],
    questions: Sequence[Sequence[str]],
    ask: Ask | None,
) -> Answers:
    if ask is None:
        raise UsageError('judge.kind "served"', "no deployment is at hand to ask", "name another judge")
    asked = [
        replace(
            item,
            id=f"{item.id}/q{number}",
            task="judge",
            prompt=(output.images[0], question),
            target="text",
            max_images=None,
        )
        for item, output, picture, texts in zip(items, outputs, pictures, questions, strict=True)
        if picture is not None
        for number, question in enumerate(texts)
    ]
    found = {one.id: answer for one, answer in zip(asked, ask(asked) if asked else [], strict=True)}
    failed = [f"{name}: {answer.error}" for name, answer in found.items() if answer.error]
    texts = [
        [o.text if (o := found.get(f"{item.id}/q{n}")) else "" for n in range(len(q))]
        for item, q in zip(items, questions, strict=True)
    ]
    return Answers(texts, _failures(failed, "questions"))


def _failures(failed: Sequence[str], what: str) -> list[str]:
    if not failed:
        return []
    return [f'the judge failed on {len(failed)} {what}, which count as "no"; the first: {failed[0]}']
