"""Exact scores of generated pictures, captions and answers against what was asked or shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from oneflow_core.shapes.checker import Reading, Sighting, examine
from oneflow_core.shapes.grammar import parse
from oneflow_core.shapes.lexicon import NUMBER_WORDS
from oneflow_core.shapes.phrases import Mention, words_of
from oneflow_core.shapes.scene import Object, Scene

MATCHED = 6
"""Mentions up to which every assignment is tried; a prompt with more names no scene anyhow."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """How a picture follows a prompt; a share is None where the prompt does not speak of the attribute."""

    colour: float | None
    """Share of the mentions that name a colour whose object has it; the others likewise."""
    shape: float | None
    position: float | None
    size: float | None
    count: bool
    """As many objects as mentions."""
    accepted: bool
    """The picture reads as a scene at all."""
    exact: bool
    """Accepted, the right count, and everything that is said is true."""


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """How a caption describes a scene. A mention names an object when it says its shape and colour, both truly,
    and nothing false; mentions and objects are matched one to one."""

    parsed: bool
    exact: bool
    """Every object is named once, and nothing else is said."""
    recall: float
    """Objects named / objects."""
    precision: float
    """Mentions that name an object / mentions; 0 for a text that is no caption."""


def score_image(mentions: Sequence[Mention], image: NDArray[np.uint8]) -> ImageScore:
    """Scores a picture against the mentions of its prompt.

    Only as many objects as the prompt names are looked at, the most salient ones, so that a picture full of
    everything earns nothing; they are matched to the mentions in the way that agrees most. Shape, colour, size
    and position are best guesses, also in a picture that is rejected as a scene.
    """
    return score_reading(mentions, examine(image))


def score_reading(mentions: Sequence[Mention], reading: Reading) -> ImageScore:
    """`score_image` of a picture that was read already."""
    seen = reading.sightings
    matched = _match(mentions, seen)
    count, accepted = len(seen) == len(mentions), reading.scene is not None
    shares = {name: _share(name, mentions, matched) for name in ("colour", "shape", "size")}
    all_true = all(thing is not None and m.agrees(thing) for m, thing in zip(mentions, matched, strict=True))
    return ImageScore(
        **shares,
        position=_position_share(mentions, matched),
        count=count,
        accepted=accepted,
        exact=count and accepted and all_true,
    )


def score_caption(text: str, scene: Scene) -> CaptionScore:
    """Scores a caption against the scene of its picture."""
    mentions = parse(text)
    if mentions is None:
        return CaptionScore(False, False, 0.0, 0.0)
    named = _named(mentions, scene)
    return CaptionScore(True, named == len(scene) == len(mentions), named / len(scene), named / len(mentions))


def score_answer(answer: str, truth: str) -> bool:
    """Whether the answers are the same words; case, punctuation, articles, and digits for number words are alike."""
    return _plain(answer) == _plain(truth)


def _match(mentions: Sequence[Mention], seen: Sequence[Sighting]) -> list[Object | None]:
    """For each mention its object, by the assignment in which most of what is said is true."""
    salient = sorted(seen, key=lambda s: -s.salience)[: len(mentions)]
    things: list[Object | None] = [s.thing for s in salient]
    things += [None] * (len(mentions) - len(things))
    best, most = things, -1
    if len(things) > MATCHED:
        return things
    for order in permutations(things):
        agreed = sum(_agreement(m, thing) for m, thing in zip(mentions, order, strict=True))
        if agreed > most:
            best, most = list(order), agreed
    return best


def _agreement(mention: Mention, thing: Object | None) -> int:
    return 0 if thing is None else sum(getattr(thing, k) == v for k, v in mention.said().items())


def _share(name: str, mentions: Sequence[Mention], matched: Sequence[Object | None]) -> float | None:
    pairs = [(m, o) for m, o in zip(mentions, matched, strict=True) if getattr(m, name) is not None]
    right = sum(o is not None and getattr(o, name) == getattr(m, name) for m, o in pairs)
    return right / len(pairs) if pairs else None


def _position_share(mentions: Sequence[Mention], matched: Sequence[Object | None]) -> float | None:
    places = [(Mention(row=m.row, col=m.col), o) for m, o in zip(mentions, matched, strict=True)]
    pairs = [(place, o) for place, o in places if place.said()]
    return sum(o is not None and place.agrees(o) for place, o in pairs) / len(pairs) if pairs else None


def _named(mentions: Sequence[Mention], scene: Scene) -> int:
    """The largest number of objects that mentions can name one to one (augmenting paths)."""
    holder: dict[int, int] = {}

    def place(mention: int, tried: set[int]) -> bool:
        said = mentions[mention]
        for index, thing in enumerate(scene):
            if index in tried or said.shape is None or said.colour is None or not said.agrees(thing):
                continue
            tried.add(index)
            if index not in holder or place(holder[index], tried):
                holder[index] = mention
                return True
        return False

    return sum(place(mention, set()) for mention in range(len(mentions)))


def _plain(text: str) -> list[str]:
    words = [NUMBER_WORDS[int(w)] if w in ("0", "1", "2", "3", "4") else w for w in words_of(text)]
    return [w for w in words if w not in ("a", "an", "the")]
