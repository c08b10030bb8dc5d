"""GenEval (Ghosh et al. 2023): objects, counts, colours and places; by a detector, questions, or exactly on shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.encoders.detector import Colours, Detector
from oneflow_core.metrics.dpg import is_yes
from oneflow_core.metrics.geneval import (
    COUNTING_THRESHOLD,
    MOST,
    POSITION_THRESHOLD,
    THRESHOLD,
    GenEvalPrompt,
    GenEvalVerdict,
    Wanted,
    judge_picture,
    kept,
    read_metadata,
)
from oneflow_core.metrics.interval import Estimate, resampled
from oneflow_core.shapes import examine
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.answers import SHAPES_SIDE, Ask, answered, judge_rule
from workflows.evaluation.suites.config import JudgeConfig
from workflows.evaluation.suites.drawings import Drawings, drawing_items
from workflows.evaluation.suites.encoders import dual_encoder, named_by
from workflows.evaluation.suites.files import File, chosen, read
from workflows.evaluation.suites.geneval_questions import questions_of
from workflows.evaluation.suites.loading import Loaded, Loader, notes_of, rules_of
from workflows.evaluation.suites.shapes_prompts import shapes_detections, shapes_metadata

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "geneval"
OVERALL, IMAGES, PROMPTS = "overall", "images_correct", "prompts_correct"
NAMES = {"detector": "geneval", "questions": "geneval-questions", "shapes": "geneval-shapes"}
"""Figures' names begin with how a picture is judged, of which the first alone is the benchmark's."""
REFERENCE = "djghosh13/geneval evaluate_images.py and summary_scores.py"
Picture = NDArray[np.uint8]


def judge(
    batch: Sequence[Item],
    outputs: Sequence[Output],
    *,
    config: EvaluateConfig | None = None,
    ask: Ask | None = None,
    rules: Mapping[str, Any] | None = None,
) -> Judged:
    """Whether each picture is right; what has no picture is wrong."""
    assert config is not None
    made, held = Drawings(outputs), rules or {}
    prompts = [_prompt(item) for item in batch]
    notes = [*notes_of(held, "prompts")]
    how = _how(config.judge)
    if how != "questions":
        see = _exact if how == "shapes" else _detecting(config.judge)
        verdicts, failed = _seen(batch, prompts, made, see)
        if failed:
            notes.append(
                f"the detector failed on {len(failed)} items, which count as wrong; the first: {failed[0]}"
            )
    else:
        asked = [questions_of(prompt) for prompt in prompts]
        answers = answered(config.judge, batch, outputs, made, asked, ask)
        verdicts = [_by_answers(q, texts) for q, texts in zip(asked, answers.texts, strict=True)]
        notes += answers.notes
    notes += made.lost("count as wrong")
    scores = [
        {f"{NAMES[how]}/{name}": float(v.correct) for name in (IMAGES, item.detail)}
        for item, v in zip(batch, verdicts, strict=True)
    ]
    return Judged(batch, outputs, scores, verdicts, held, notes, (NAMES[how], config.resamples))


def figures(judged: Judged) -> dict[str, Figure]:
    """Shares of pictures that are right, by task and of all; `overall` is the mean of tasks, as the official one."""
    if not judged.items:
        return {}
    name, resamples = judged.context
    tags, images = sorted({i.detail for i in judged.items}), f"{name}/{IMAGES}"
    parts_NK = np.array([[s[images], *(float(i.detail == t) for t in tags)] for i, s in _rows(judged)])
    groups = [i.scene for i in judged.items]
    names, group_N = np.unique(groups, return_inverse=True)

    def prompts(weight_N: NDArray[np.float64]) -> float:
        best, counted = np.zeros(len(names)), np.zeros(len(names))
        np.maximum.at(best, group_N, parts_NK[:, 0])
        np.maximum.at(counted, group_N, weight_N)
        return float(best @ counted / counted.sum())

    def overall(weight_N: NDArray[np.float64]) -> float:
        return _overall(parts_NK * weight_N[:, None])

    def sampled(of: Callable[[NDArray[np.float64]], float]) -> Estimate:
        return resampled(of, len(parts_NK), resamples=resamples, groups=groups, least=0)

    parts = dict(zip((i.id for i in judged.items), map(tuple, parts_NK.tolist()), strict=True))
    found = {
        f"{name}/{OVERALL}": Figure(sampled(overall), {}, "higher", resamples, False, parts, _overall),
        f"{name}/{PROMPTS}": Figure(sampled(prompts), resamples=resamples, per_item=False),
    }
    return found | {n: Figure(judged.mean(n)) for n in (images, *(f"{name}/{tag}" for tag in tags))}


def _overall(parts_NK: NDArray[np.float64]) -> float:
    """The mean over tasks of the share of right pictures; parts are right or not, and the task, one column each."""
    right, tasks = parts_NK[:, 0], parts_NK[:, 1:]
    totals = tasks.sum(0)
    # A weighted part has its weight in both factors.
    weight = tasks.sum(1)
    right = np.divide(right, weight, out=np.zeros_like(right), where=weight > 0)
    return float(np.mean((right @ tasks)[totals > 0] / totals[totals > 0]))


def _rows(judged: Judged) -> Iterator[tuple[Item, Mapping[str, float]]]:
    return zip(judged.items, judged.scores, strict=True)


def _how(config: JudgeConfig) -> str:
    if config.kind == "shapes":
        return "shapes"
    return "detector" if config.detector and config.kind == "huggingface" else "questions"


def _judge_rules(config: JudgeConfig, served: Mapping[str, str] | None) -> dict[str, Any]:
    how = _how(config)
    if how == "shapes":
        return {"rule": NAMES[how], "judge": judge_rule(config, served)}
    if how == "detector":
        seen = _detector(config.detector or "", config.device).id
        colours = _colours(config).encoder.id
        limits = {
            "threshold": THRESHOLD,
            "counting": COUNTING_THRESHOLD,
            "most": MOST,
            "position": POSITION_THRESHOLD,
        }
        detector = {
            "kind": "detector",
            "id": seen,
            "colours": colours,
        }
        masks = "colours are judged in boxes; the official script masks objects with its segmentation"
        return {"rule": NAMES[how], "limits": limits, "judge": detector, "difference": masks}
    note = "every question of a prompt must be answered yes; this is not GenEval's figure"
    return {"rule": NAMES[how], "judge": judge_rule(config, served), "difference": note}


def _seen(
    batch: Sequence[Item],
    prompts: Sequence[GenEvalPrompt],
    made: Sequence[Picture | None],
    see: Callable[[Picture, GenEvalPrompt], GenEvalVerdict],
) -> tuple[list[GenEvalVerdict], list[str]]:
    verdicts, failed = [], []
    for item, prompt, picture in zip(batch, prompts, made, strict=True):
        if picture is None:
            verdicts.append(GenEvalVerdict(False, "no picture"))
            continue
        try:
            verdicts.append(see(picture, prompt))
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            verdicts.append(GenEvalVerdict(False, "the detector failed"))
            failed.append(f"{item.id}: {type(error).__name__}: {error}")
    return verdicts, failed


def _exact(picture: Picture, prompt: GenEvalPrompt) -> GenEvalVerdict:
    if picture.shape[:2] != (SHAPES_SIDE, SHAPES_SIDE):
        return GenEvalVerdict(False, "no picture of the shapes corpus")
    seen, colours = shapes_detections(examine(picture))
    return judge_picture(prompt, kept(seen, prompt.tag), lambda _, found: [colours[one] for one in found])


def _detecting(config: JudgeConfig) -> Callable[[Picture, GenEvalPrompt], GenEvalVerdict]:
    detector, colours = _detector(config.detector or "", config.device), _colours(config)

    def see(picture: Picture, prompt: GenEvalPrompt) -> GenEvalVerdict:
        objects = kept(detector.detect(picture), prompt.tag)
        return judge_picture(prompt, objects, lambda name, found: colours(picture, name, found))

    return see


def _by_answers(questions: Sequence[str], texts: Sequence[str]) -> GenEvalVerdict:
    wrong = [q for q, text in zip(questions, texts, strict=True) if not is_yes(text)]
    return GenEvalVerdict(not wrong, f"not answered yes: {wrong[0]}" if wrong else "")


@lru_cache(1)
def _detector(path: str, device: str) -> Detector:
    with named_by("judge.detector"):
        return Detector.from_pretrained(path, device)


def _colours(config: JudgeConfig) -> Colours:
    return Colours(dual_encoder("judge.colours", config.colours, config.device))


def _prompt(item: Item) -> GenEvalPrompt:
    row = json.loads(item.truth)
    include, exclude = (tuple(Wanted(**clause) for clause in row[key]) for key in ("include", "exclude"))
    return GenEvalPrompt(str(item.prompt[0]), item.detail, include, exclude)


def _truth(prompt: GenEvalPrompt) -> str:
    clauses = {"include": prompt.include, "exclude": prompt.exclude}
    return json.dumps({key: [asdict(c) for c in held] for key, held in clauses.items()}, ensure_ascii=False)


def _load(config: EvaluateConfig) -> Loaded:
    """The prompts, `images_per_prompt` times each; truth is the metadata as JSON."""
    prompts, refused, files = _read(config)
    taken = chosen(prompts, config.limit, config.seed)
    asked = {name: (prompts[name].text, _truth(prompts[name])) for name in taken}
    return Loaded(
        drawing_items(config, SUITE, asked, {name: prompts[name].tag for name in taken}),
        rules_of(
            config,
            files,
            refused,
            reference=REFERENCE,
            corpus="file" if files else "shapes, held-out scenes",
            images_per_prompt=config.images_per_prompt,
        ),
    )


def _read(config: EvaluateConfig) -> tuple[dict[str, GenEvalPrompt], dict[str, str], dict[str, File]]:
    if config.data.metadata is None and config.judge.kind == "shapes":
        return shapes_metadata(config.seed, config.limit or 120), {}, {}
    file = read("metadata", config.data.metadata, SUITE)
    prompts, refused = read_metadata(file.text().split("\n"))
    if not prompts:
        raise file.refused(f"no line is a prompt of GenEval; {next(iter(refused.values()), 'it is empty')}")
    return prompts, refused, {"metadata": file}


_loader = Loader(_load, _judge_rules)
items, rules = _loader.items, _loader.rules
