"""What the shapes suite asks: held-out scenes only, the same for every model with the same config."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from oneflow_core.metrics.length import word_count
from oneflow_core.shapes import Scene, Split, ask, caption, render, sample_in_split, sample_story
from oneflow_core.shapes.grammar import describe, mention_of
from oneflow_core.shapes.stories import MAX_IMAGES
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import MAIN_SPLIT, REPORTED
from workflows.evaluation.item import Item

WORDINGS = 8
"""Captions from which the expected length is averaged."""
TASKS = ("t2i/single", "t2i/multi", "caption/single", "caption/multi", "vqa", "story")
WITH_CONTROL = ("t2i/single", "t2i/multi", "caption/single", "caption/multi", "vqa")


def items(config: EvaluateConfig) -> list[Item]:
    """All items, real ones first; a pure function of seed and numbers."""
    real = [item for task in TASKS for split in REPORTED for item in _items(config, task, split)]
    return real + [blind for task in WITH_CONTROL for blind in _blind(real, task, config.items.no_prompt)]


def picture(scene: Scene) -> bytes:
    """The scene's picture as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(render(scene)).save(buffer, "PNG")
    return buffer.getvalue()


def _items(config: EvaluateConfig, task: str, split: Split) -> Iterator[Item]:
    wanted = getattr(config.items, task.replace("/", "_"))
    count = wanted if split == MAIN_SPLIT else round(wanted * config.items.combinations)
    rng = np.random.default_rng([config.seed, TASKS.index(task), REPORTED.index(split)])
    make = _MAKERS[task.split("/")[0]]
    for index in range(count):
        item = make(task, split, rng)
        yield replace(item, id=f"{task}/{split}/{index:04d}", seed=int(rng.integers(2**31)))


def _blind(real: list[Item], task: str, count: int) -> Iterator[Item]:
    """The same items without what they show or say; a question stays, without its picture."""
    mine = [item for item in real if item.task == task and item.split == MAIN_SPLIT][:count]
    for item in mine:
        kept = item.prompt[1:] if task == "vqa" else ()
        yield replace(item, id=f"{item.id}/no_prompt", prompt=kept, control="no_prompt")


def _scene(task: str, split: Split, rng: np.random.Generator) -> Scene:
    wanted = 1 if task.endswith("/single") else None
    while True:
        scene = sample_in_split(rng, split, wanted)
        if len(scene) > 1 or not task.endswith("/multi"):
            return scene


def _drawing(task: str, split: Split, rng: np.random.Generator) -> Item:
    """A prompt for one object says everything, so that none was ever read in training; others are worded freely."""
    scene = _scene(task, split, rng)
    text = caption(scene, rng) if len(scene) > 1 else describe([mention_of(o) for o in scene], rng)
    return Item("", task, split, (text,), "image", 0, text, str(scene), max_images=1)


def _description(task: str, split: Split, rng: np.random.Generator) -> Item:
    scene = _scene(task, split, rng)
    expected = float(np.mean([word_count(caption(scene, rng)) for _ in range(WORDINGS)]))
    return Item(
        "", task, split, (picture(scene),), "text", 0, str(scene), str(scene), expected_words=expected
    )


def _question(task: str, split: Split, rng: np.random.Generator) -> Item:
    scene = sample_in_split(rng, split)
    question = ask(scene, rng)
    prompt = (picture(scene), question.text)
    return Item(
        "", task, split, prompt, "text", 0, question.answer, str(scene), question.kind, expected_words=1.0
    )


def _story(task: str, split: Split, rng: np.random.Generator) -> Item:
    story = sample_story(rng, split)
    first = str(story.scenes[0])
    return Item("", task, split, (story.texts[0],), "document", 0, first, first, max_images=MAX_IMAGES)


_MAKERS: dict[str, Callable[[str, Split, np.random.Generator], Item]] = {
    "t2i": _drawing,
    "caption": _description,
    "vqa": _question,
    "story": _story,
}
