"""DPG-Bench (Hu et al. 2024): questions about a picture that depend on each other, by both rules that are in use."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from oneflow_core.metrics.dpg import (
    Prompt,
    Question,
    Questions,
    is_yes,
    read_questions,
    score_prompt,
)
from oneflow_core.metrics.interval import ratio
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.answers import Ask, answered, judge_rule
from workflows.evaluation.suites.config import JudgeConfig
from workflows.evaluation.suites.drawings import Drawings, drawing_items
from workflows.evaluation.suites.files import File, chosen, read
from workflows.evaluation.suites.loading import Loaded, Loader, notes_of, rules_of
from workflows.evaluation.suites.shapes_prompts import shapes_questions

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "dpg-bench"
DPG, DSG, PLAIN = "dpg_rule", "dsg_rule", "no_dependencies"
RULES = {
    DPG: 'ELLA: a "no" zeroes children in the order of the file, and so reaches grandchildren',
    DSG: "DSG: raw answers of direct parents alone",
    PLAIN: "every question by itself",
    "category": "raw answers by category, over all pictures",
}
REFERENCE = "TencentQQGYLab/ELLA compute_dpg_bench.py @3c228f1 (scores its first row too), j-min/DSG @7330119"


def judge(
    batch: Sequence[Item],
    outputs: Sequence[Output],
    *,
    config: EvaluateConfig | None = None,
    ask: Ask | None = None,
    rules: Mapping[str, Any] | None = None,
) -> Judged:
    """Asks the judge every question; what has no picture, or no answer, counts as "no"."""
    assert config is not None
    made, held = Drawings(outputs), rules or {}
    texts = [[q["text"] for q in json.loads(i.truth)] for i in batch]
    answers = answered(config.judge, batch, outputs, made, texts, ask)
    notes = [*notes_of(held, "prompts"), *made.lost("score 0"), *answers.notes]
    prefix = "dpg-shapes" if config.judge.kind == "shapes" else "dpg"
    return _scored(Judged(batch, outputs, [], [], held, notes, prefix), answers.texts)


def figures(judged: Judged) -> dict[str, Figure]:
    """Means over pictures by each rule, and shares of "yes" by category, 0 to 100."""
    if not judged.items:
        return {}
    found = {
        f"{judged.context}/{name}": Figure(judged.mean(f"{judged.context}/{name}"))
        for name in (DPG, DSG, PLAIN)
    }
    for place in (0, 1):
        for category in sorted({row[place] for raw in judged.readings for row in raw}):
            found[f"{judged.context}/category/{_slug(category)}"] = _category(judged, place, category)
    return found


def _scored(told: Judged, answers: Sequence[Sequence[str]]) -> Judged:
    """Scores under the names of figures, and raw answers with their categories."""
    scores, raw = [], []
    for item, said in zip(told.items, answers, strict=True):
        prompt = _prompt(item)
        yes = {q.number: is_yes(text) for q, text in zip(prompt.questions, said, strict=True)}
        found = score_prompt(prompt, yes)
        points = {DPG: found.dpg, DSG: found.dsg, PLAIN: found.plain}
        scores.append({f"{told.context}/{name}": 100 * share for name, share in points.items()})
        raw.append([(q.category, q.detail, yes[q.number]) for q in prompt.questions])
    return replace(told, scores=scores, readings=raw)


def _category(judged: Judged, place: int, category: str) -> Figure:
    """Pictures are resampled, not questions: those of one picture stand or fall together."""
    held = [
        (100.0 * sum(row[2] for row in raw if row[place] == category), item.scene, len(mine))
        for item, raw in zip(judged.items, judged.readings, strict=True)
        if (mine := [row for row in raw if row[place] == category])
    ]
    yes, scenes, counts = zip(*held, strict=True)
    return Figure(ratio(yes, [float(n) for n in counts], scenes), per_item=False)


def _slug(category: str) -> str:
    """A category's name as part of a metric's: "attribute - color" is attribute-color."""
    return category.replace(" - ", "-").replace(" ", "_") or "none"


def _prompt(item: Item) -> Prompt:
    questions = [
        Question(q["number"], q["text"], tuple(q["parents"]), q["category"], q["detail"])
        for q in json.loads(item.truth)
    ]
    return Prompt(str(item.prompt[0]), tuple(questions))


def _truth(prompt: Prompt) -> str:
    rows = [
        {"number": q.number, "text": q.text, "parents": q.parents, "category": q.category, "detail": q.detail}
        for q in prompt.questions
    ]
    return json.dumps(rows, ensure_ascii=False)


def _read(config: EvaluateConfig) -> tuple[Questions, dict[str, File]]:
    """The file's questions; without a file, where the judge is exact on shapes, those of held-out scenes."""
    if config.data.questions is None and config.judge.kind == "shapes":
        return shapes_questions(config.seed, config.limit or 100), {}
    file = read("questions", config.data.questions, SUITE)
    try:
        return read_questions(io.StringIO(file.text(), newline="")), {"questions": file}
    except ValueError as error:
        raise file.refused(str(error)) from None


def _judge_rules(config: JudgeConfig, served: Mapping[str, str] | None) -> dict[str, Any]:
    return {"judge": judge_rule(config, served)}


def _load(config: EvaluateConfig) -> Loaded:
    """The prompts, `images_per_prompt` times each; truth is the questions as JSON."""
    questions, files = _read(config)
    if not questions.prompts:
        raise files["questions"].refused(f"no prompt can be scored ({len(questions.refused)} were refused)")
    taken = chosen(questions.prompts, config.limit, config.seed)
    prompts = {name: (questions.prompts[name].text, _truth(questions.prompts[name])) for name in taken}
    return Loaded(
        drawing_items(config, SUITE, prompts),
        rules_of(
            config,
            files,
            questions.refused,
            rule=RULES,
            reference=REFERENCE,
            corpus="file" if files else "shapes, held-out scenes",
            images_per_prompt=config.images_per_prompt,
        ),
    )


_loader = Loader(_load, _judge_rules)
items, rules = _loader.items, _loader.rules
