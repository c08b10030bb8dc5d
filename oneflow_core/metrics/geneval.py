"""GenEval (Ghosh et al. 2023): whether a picture holds the objects that a prompt names, from what a detector saw.

The rules are those of the official evaluate_images.py with its defaults. Its figures also rest on its detector
(Mask2Former Swin-S of mmdetection) and on CLIP ViT-L/14 for colours: with others the rule is the same, the figure not.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

THRESHOLD = 0.3
"""Confidence above which a detection counts."""
COUNTING_THRESHOLD = 0.9
"""The same, for prompts with the tag "counting"."""
MOST = 16
"""Objects of a class that are kept, the most confident ones."""
POSITION_THRESHOLD = 0.1
"""Share of both objects' extents by which their centres must lie apart."""
RELATIONS = ("left of", "right of", "above", "below")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOUR_TEMPLATES = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")
"""Texts whose mean embedding stands for a colour of a class."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector saw."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A clause: so many objects of a class, of a colour, in a place relative to those of an earlier clause."""

    label: str
    count: int
    colour: str = ""
    relation: str = ""
    target: int = 0
    """Index of the clause that `relation` refers to."""


@dataclass(frozen=True, slots=True)
class GenEvalPrompt:
    """One line of GenEval's metadata."""

    text: str
    tag: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()


@dataclass(frozen=True, slots=True)
class GenEvalVerdict:
    """Whether a picture is right, and if not why."""

    correct: bool
    reason: str


Colouring = Callable[[str, Sequence[Detection]], Sequence[str]]
"""Names the colour of each of some objects of a class."""


def read_metadata(lines: Iterable[str]) -> tuple[dict[str, GenEvalPrompt], dict[str, str]]:
    """Prompts by their line's number ("00000" is the first) and lines that cannot be read, with the reason."""
    prompts: dict[str, GenEvalPrompt] = {}
    refused: dict[str, str] = {}
    for number, line in enumerate(lines):
        if line.strip():
            try:
                prompts[f"{number:05d}"] = _prompt(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                refused[f"{number:05d}"] = f"line {number + 1}: {type(error).__name__}: {error}"
    return prompts, refused


def kept(found: Iterable[Detection], tag: str) -> dict[str, list[Detection]]:
    """By class, what a detector is confident of, the most confident first."""
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    classes: dict[str, list[Detection]] = defaultdict(list)
    for one in sorted(found, key=lambda d: -d.score):
        if one.score > least and len(classes[one.label]) < MOST:
            classes[one.label].append(one)
    return {label: seen for label, seen in classes.items() if seen}


def judge_picture(
    prompt: GenEvalPrompt, objects: Mapping[str, Sequence[Detection]], colours: Colouring
) -> GenEvalVerdict:
    """The official rule over `objects`, as `kept` gives them; only the most confident ones of a class are looked at."""
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in prompt.include:
        found = objects.get(clause.label, [])[: clause.count]
        reason = _missed(clause, found, groups, colours)
        groups.append(None if reason else found)
        reasons += [reason] if reason else []
    for clause in prompt.exclude:
        if (seen := len(objects.get(clause.label, []))) >= clause.count:
            reasons.append(f"expected {clause.label}<{clause.count}, found {seen}")
    return GenEvalVerdict(not reasons, "; ".join(reasons))


def relations(first: Detection, second: Detection) -> set[str]:
    """How `first` lies to `second`; empty where their centres lie too close for their sizes."""
    boxes = np.array([first.box, second.box], float).reshape(2, 2, 2)
    centres, extents = boxes.mean(1), np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    clear = np.maximum(np.abs(offset) - POSITION_THRESHOLD * extents.sum(0), 0) * np.sign(offset)
    if np.all(np.abs(clear) < 1e-3):
        return set()
    right, down = clear / np.linalg.norm(offset)
    holds = (right < -0.5, right > 0.5, down < -0.5, down > 0.5)
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def _missed(
    clause: Wanted,
    found: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    colours: Colouring,
) -> str:
    """Why a clause does not hold; "" where it does."""
    if len(found) < clause.count:
        return f"expected {clause.label}>={clause.count}, found {len(found)}"
    reason = ""
    if clause.colour:
        seen = list(colours(clause.label, found))
        if seen.count(clause.colour) < clause.count:
            reason = f"expected {clause.colour} {clause.label}>={clause.count}, found {', '.join(seen)}"
    if clause.relation and not reason:
        target = groups[clause.target]
        if target is None:
            reason = f"no target for {clause.label} to be {clause.relation}"
        elif not all(clause.relation in relations(one, other) for one in found for other in target):
            reason = f"expected {clause.label} {clause.relation} target"
    return reason


def _prompt(row: Mapping[str, Any]) -> GenEvalPrompt:
    include = tuple(_wanted(clause, place) for place, clause in enumerate(row["include"]))
    exclude = tuple(_wanted(clause, 0) for clause in row.get("exclude", []))
    if not include:
        raise ValueError("nothing is included")
    if not isinstance(row["prompt"], str) or not isinstance(row["tag"], str):
        raise ValueError("prompt and tag must be texts")
    return GenEvalPrompt(row["prompt"], row["tag"], include, exclude)


def _wanted(clause: Mapping[str, Any], place: int) -> Wanted:
    label, count, colour = clause["class"], clause["count"], clause.get("color", "")
    relation, target = clause.get("position", ("", 0))
    if not isinstance(label, str) or not isinstance(count, int) or count < 1:
        raise ValueError(f"class {label!r} with count {count!r}")
    if colour and colour not in COLOURS:
        raise ValueError(f"color {colour!r} is none of {', '.join(COLOURS)}")
    if relation and (relation not in RELATIONS or not isinstance(target, int) or not 0 <= target < place):
        raise ValueError(f"position [{relation!r}, {target!r}] names no relation to an earlier clause")
    return Wanted(label, count, colour, relation, target)
