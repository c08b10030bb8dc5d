"""The shapes suite: exact scores of pictures, captions, answers and stories, with their controls."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.control import chance, means, shuffled
from oneflow_core.metrics.length import length_ratio, word_count
from oneflow_core.shapes import (
    Reading,
    Scene,
    ask,
    caption,
    examine,
    follows_scenes,
    parse,
    sample_in_split,
    sample_story,
    score_answer,
    score_caption,
    score_reading,
)
from oneflow_core.shapes.questions import KINDS
from workflows.evaluation.figures import REPORTED, Figure, Judged, named
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.shapes_items import items

__all__ = ["SIZE", "figures", "items", "judge", "judge_one"]

SIZE = (64, 64)
IMAGE_SCORES = ("colour", "shape", "size", "position", "count", "accepted", "exact")
TEXT_SCORES = ("exact", "recall", "precision")
NOTHING = Reading((), None)
LEAST_IMAGES = 2
"""Pictures that a story has at least; missing ones count as wrong."""


@dataclass(frozen=True, slots=True)
class Made:
    """An output as the suite understands it."""

    texts: tuple[str, ...]
    """The text before each picture, and the one after the last if there is any."""
    readings: tuple[Reading, ...]

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One output, judged without the others."""

    made: Made
    scores: Mapping[str, float]
    chance: Mapping[str, float]
    """What a drawing from the corpus scores here, over some; an item that is a control itself has none."""


def judge_one(item: Item, output: Output) -> Judgement:
    """What needs no other output: most of the work, which is done while those are still in the making."""
    made = _understand(output)
    by_chance = {} if item.control else chance([item], _draw, _score, np.random.default_rng(item.seed))
    return Judgement(made, _score(item, made), by_chance)


def judge(
    batch: Sequence[Item],
    outputs: Sequence[Output],
    *,
    judged: Mapping[str, Judgement] | None = None,
    **unused: Any,
) -> Judged:
    """Scores every output; a failed one scores as an empty one. Config and judge, which other suites need, are not.

    `judged` has what `judge_one` said, by the item's id; what is not there is judged now.
    """
    before = judged or {}
    each = [before.get(item.id) or judge_one(item, o) for item, o in zip(batch, outputs, strict=True)]
    by_chance = {item.id: one.chance for item, one in zip(batch, each, strict=True)}
    return Judged(batch, outputs, [one.scores for one in each], [one.made for one in each], context=by_chance)


def figures(judged: Judged) -> dict[str, Figure]:
    """Every figure by its name; tasks without items have none."""
    found: dict[str, Figure] = {}
    for split in REPORTED:
        for task, scores in (("t2i/single", IMAGE_SCORES), ("t2i/multi", IMAGE_SCORES), ("t2i", ("exact",))):
            found |= _task_figures(judged, task, split, scores)
        for task in ("caption/single", "caption/multi", "caption"):
            found |= _task_figures(judged, task, split, TEXT_SCORES)
        found |= _task_figures(judged, "vqa", split, ("accuracy",))
        for kind in KINDS:
            found |= _task_figures(judged, "vqa", split, ("accuracy",), kind)
        found |= _task_figures(judged, "story", split, ("images_exact", "exact", "images"))
        found |= _length_figures(judged, split)
    return found


def _understand(output: Output) -> Made:
    texts, readings = [""], []
    for part in output.parts:
        if isinstance(part, str):
            texts[-1] += part
        else:
            readings.append(_reading(part))
            texts.append("")
    return Made(tuple(texts if texts[-1] else texts[:-1]), tuple(readings))


def _reading(png: bytes) -> Reading:
    """What a picture shows; one of another size, or one that is broken, shows nothing."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(png))
        return examine(np.asarray(image.convert("RGB"))) if image.size == SIZE else NOTHING
    except (OSError, ValueError, SyntaxError):
        return NOTHING


def _score(item: Item, made: Made) -> dict[str, float]:
    return _SCORERS[item.task.split("/")[0]](item, made)


def _score_image(item: Item, made: Made) -> dict[str, float]:
    mentions = parse(item.truth) or []
    score = score_reading(mentions, made.readings[0] if made.readings else NOTHING)
    scores = {name: getattr(score, name) for name in IMAGE_SCORES}
    return {name: float(value) for name, value in scores.items() if value is not None}


def _score_caption(item: Item, made: Made) -> dict[str, float]:
    score = score_caption(made.text, Scene.parse(item.truth))
    return {name: float(getattr(score, name)) for name in TEXT_SCORES}


def _score_answer(item: Item, made: Made) -> dict[str, float]:
    return {"accuracy": float(score_answer(made.text, item.truth))}


def _score_story(item: Item, made: Made) -> dict[str, float]:
    first = f"{item.prompt[0]!s} {made.texts[0] if made.texts else ''}".strip()
    right = follows_scenes([first, *made.texts[1:]], [reading.scene for reading in made.readings])
    return {
        "images_exact": sum(right) / max(len(right), LEAST_IMAGES),
        "exact": float(len(right) >= LEAST_IMAGES and all(right)),
        "images": float(len(made.readings)),
    }


_SCORERS: Mapping[str, Callable[[Item, Made], dict[str, float]]] = {
    "t2i": _score_image,
    "caption": _score_caption,
    "vqa": _score_answer,
    "story": _score_story,
}


def _task_figures(
    judged: Judged, task: str, split: str, scores: Sequence[str], detail: str = ""
) -> dict[str, Figure]:
    real = judged.where(task, split, detail=detail)
    if not real.items:
        return {}
    blind = judged.where(task, split, "no_prompt", detail)
    rng = np.random.default_rng(len(real.items))
    by_control = {
        "chance": means(judged.context[item.id] for item in real.items),
        "shuffled": shuffled(real.items, real.readings, _score, rng),
        "no_prompt": {name: blind.mean(name).value for name in scores},
    }
    found = {}
    for name in scores:
        controls = {c: v[name] for c, v in by_control.items() if np.isfinite(v.get(name, np.nan))}
        full_name = named("/".join(filter(None, (task, detail, name))), split)
        found[full_name] = real.figure(name, controls)
    return found


def _draw(item: Item, rng: np.random.Generator) -> Made:
    """What somebody makes who knows the corpus but not the prompt."""
    if item.task == "vqa":
        kind: Any = item.detail
        return Made((ask(sample_in_split(rng, "train"), rng, kind).answer,), ())
    if item.task == "story":
        scenes = [sample_in_split(rng, "train") for _ in range(2)]
        return Made(("", sample_story(rng, n_images=2).texts[1]), tuple(map(Reading.of, scenes)))
    if item.task.startswith("caption"):
        return Made((caption(sample_in_split(rng, "train"), rng),), ())
    scene = sample_in_split(rng, "train", len(parse(item.truth) or ()))
    return Made(("",), (Reading.of(scene),))


def _length_figures(judged: Judged, split: str) -> dict[str, Figure]:
    found = {}
    for task, name in (("caption", "text/length_ratio"), ("vqa", "vqa/length_ratio")):
        real = judged.where(task, split)
        if real.items:
            texts, expected = [o.text for o in real.outputs], [i.expected_words for i in real.items]
            parts = {i.id: (word_count(t), e) for i, t, e in zip(real.items, texts, expected, strict=True)}
            estimate = length_ratio(texts, expected, [i.scene for i in real.items])
            found[named(name, split)] = Figure(estimate, per_item=False, parts=parts, combine=_ratio)
    return found


def _ratio(parts_N2: NDArray[np.float64]) -> float:
    above, below = parts_N2.sum(0)
    return float(above / below) if below else math.nan
