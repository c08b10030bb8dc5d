"""DPG-Bench's and GenEval's layouts over held-out scenes of the shapes corpus, which a reader answers exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from oneflow_core.metrics.dpg import Prompt, Question, Questions
from oneflow_core.metrics.geneval import Detection, GenEvalPrompt, Wanted
from oneflow_core.shapes import GRID, Mention, Object, Reading, Scene, canonical_caption, sample_in_split
from oneflow_core.shapes.grammar import describe, noun_phrase
from oneflow_core.shapes.render import CELL, RADIUS, cell_origin
from workflows.evaluation.figures import MAIN_SPLIT

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PLACES = {"left of": (1, 0), "right of": (1, GRID - 1), "above": (0, 1), "below": (GRID - 1, 1)}
"""Cell of the first object when the second lies opposite, in a row or a column through the middle."""


def shapes_questions(seed: int, count: int) -> Questions:
    """`count` prompts in DPG-Bench's layout: what, which colour, which size, and how objects lie to each other."""
    rng = np.random.default_rng([seed, 0])
    prompts = {}
    for number in range(count):
        scene = sample_in_split(rng, MAIN_SPLIT)
        prompts[f"shapes_{number:04d}"] = Prompt(canonical_caption(scene), tuple(_questions(scene)))
    return Questions(prompts, {})


def shapes_metadata(seed: int, count: int) -> dict[str, GenEvalPrompt]:
    """`count` prompts in GenEval's layout, its six tasks in turn."""
    rng = np.random.default_rng([seed, 1])
    return {f"shapes_{n:04d}": _task(TAGS[n % len(TAGS)], rng) for n in range(count)}


def shapes_detections(reading: Reading) -> tuple[list[Detection], dict[Detection, str]]:
    """What the exact reader sees, as a detector says it, and the colour of each; no scene shows nothing."""
    found: dict[Detection, str] = {}
    for thing in reading.scene or ():
        top, left = cell_origin(thing.row, thing.col)
        middle, radius = CELL / 2, RADIUS[thing.size]
        x, y = left + middle, top + middle
        found[Detection(thing.shape, 1.0, (x - radius, y - radius, x + radius, y + radius))] = thing.colour
    return list(found), found


def _questions(scene: Scene) -> Iterator[Question]:
    number, named = 0, {}
    for thing in scene:
        entity = number + 1
        asked = (
            (Mention(shape=thing.shape), (), "entity", "whole"),
            (Mention(thing.shape, thing.colour), (entity,), "attribute", "color"),
            (Mention(thing.shape, thing.colour, thing.size), (entity + 1,), "attribute", "size"),
        )
        for mention, parents, broad, fine in asked:
            number += 1
            text = f"Is there {noun_phrase(mention, None)}?"
            yield Question(number, text, parents, broad, f"{broad} - {fine}")
        named[thing] = entity + 1
    alone = [t for t in scene if sum((t.shape, t.colour) == (o.shape, o.colour) for o in scene) == 1]
    for first, second in zip(alone, alone[1:], strict=False):
        number += 1
        text = f"Is {_the(first)} {_relation(first, second)} {_the(second)}?"
        yield Question(number, text, (named[first], named[second]), "relation", "relation - spatial")


def _the(thing: Object) -> str:
    return noun_phrase(Mention(thing.shape, thing.colour), None, article="the")


def _relation(first: Object, second: Object) -> str:
    """One that holds; objects of a scene lie in different cells."""
    if first.col != second.col:
        return "left of" if first.col < second.col else "right of"
    return "above" if first.row < second.row else "below"


def _task(tag: str, rng: np.random.Generator) -> GenEvalPrompt:
    scene = sample_in_split(rng, MAIN_SPLIT, 2)
    while scene.objects[0].shape == scene.objects[1].shape:
        scene = sample_in_split(rng, MAIN_SPLIT, 2)
    one, two = scene
    if tag == "counting":
        count = int(rng.integers(2, 5))
        # The corpus nearly always says a colour.
        text = noun_phrase(Mention(one.shape, one.colour), None, count=count)
        return GenEvalPrompt(
            text, tag, (Wanted(one.shape, count, one.colour),), (Wanted(one.shape, count + 1),)
        )
    coloured, both = tag in ("colors", "color_attr"), tag in ("two_object", "position", "color_attr")
    things = (one, two) if both else (one,)
    mentions = [Mention(t.shape, t.colour if coloured else None) for t in things]
    wanted = [Wanted(t.shape, 1, t.colour if coloured else "") for t in things]
    if tag == "position":
        relation = list(PLACES)[int(rng.integers(len(PLACES)))]
        (row, col), end = PLACES[relation], GRID - 1
        places = [(end - row, end - col), (row, col)]
        mentions = [Mention(t.shape, row=r, col=c) for t, (r, c) in zip(things, places, strict=True)]
        wanted[1] = Wanted(two.shape, 1, "", relation, 0)
    return GenEvalPrompt(describe(mentions, rng), tag, tuple(wanted))
