"""Questions about scenes, their answers, and an answerer that works from the words alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from oneflow_core.shapes.grammar import noun_phrase, place_phrase
from oneflow_core.shapes.lexicon import (
    COLOUR_WORDS,
    NUMBER_WORDS,
    plural,
)
from oneflow_core.shapes.phrases import Mention, parse_phrase, words_of
from oneflow_core.shapes.scene import COLOURS, SHAPES, Object, Scene
from oneflow_core.shapes.split import is_heldout_pair, split_of

QuestionKind = Literal["colour", "shape", "count", "yes_no", "relation"]
KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""(row, column) step that the first object lies from the second."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its exact answer, of one or two words."""

    text: str
    answer: str
    kind: QuestionKind


def ask(scene: Scene, rng: np.random.Generator, kind: QuestionKind | None = None) -> Question:
    """A question about `scene`; a kind that the scene cannot bear (a relation of one object) becomes another."""
    while True:
        chosen = kind or KINDS[int(rng.integers(len(KINDS)))]
        question = _ASKERS[chosen](scene, rng)
        if question is not None:
            return Question(*question, chosen)
        kind = None


def answer(text: str, scene: Scene) -> str | None:
    """The exact answer to any question that `ask` writes; None for another text, or where there is no answer."""
    question = " ".join(words_of(text))
    for pattern, reader in _READERS:
        found = re.fullmatch(pattern, question)
        if found:
            return reader(scene, *found.groups())
    return None


def _pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]


def _referents(scene: Scene, thing: Object) -> Iterator[Mention]:
    """Short mentions that only `thing` fits."""
    for mention in (
        Mention(shape=thing.shape),
        Mention(colour=thing.colour),
        Mention(row=thing.row, col=thing.col),
        Mention(thing.shape, thing.colour),
    ):
        if sum(mention.agrees(other) for other in scene) == 1:
            yield mention


def _refer(mention: Mention, rng: np.random.Generator) -> str:
    return f"{noun_phrase(mention, rng, article='the')} {place_phrase(mention, rng)}".strip()


def _choose(scene: Scene, rng: np.random.Generator, unsaid: str) -> tuple[Object, Mention] | None:
    """An object and a mention of it that does not give away `unsaid`."""
    options = [(o, m) for o in scene for m in _referents(scene, o) if getattr(m, unsaid) is None]
    return options[int(rng.integers(len(options)))] if options else None


def _ask_colour(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    chosen = _choose(scene, rng, "colour")
    if chosen is None:
        return None
    return f"{_pick(rng, 'What colour', 'Which colour')} is {_refer(chosen[1], rng)}?", chosen[0].colour


def _ask_shape(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    chosen = _choose(scene, rng, "shape")
    if chosen is None:
        return None
    return f"{_pick(rng, 'What shape', 'Which shape')} is {_refer(chosen[1], rng)}?", chosen[0].shape


def _ask_count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    seen = scene.objects[int(rng.integers(len(scene)))]
    of = _pick(rng, "all", "colour", "shape", "absent")
    if of == "all":
        mention = Mention()
    elif of == "colour":
        mention = Mention(colour=seen.colour)
    elif of == "shape":
        mention = Mention(shape=seen.shape)
    else:
        mention = Mention(colour=_pick(rng, *COLOURS))
    number = sum(mention.agrees(thing) for thing in scene)
    nouns = plural(mention.shape or "object")
    words = f"{mention.colour} {nouns}" if mention.colour else nouns
    return f"How many {words} are there?", NUMBER_WORDS[number]


def _ask_yes_no(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    yes = rng.random() < 0.5
    if rng.random() < 0.3:
        chosen = _choose(scene, rng, "colour")
        if chosen is None:
            return None
        shape = chosen[1].shape
        others = [c for c in COLOURS if c != chosen[0].colour and not (shape and _unseen(scene, shape, c))]
        colour = chosen[0].colour if yes else _pick(rng, *others)
        return f"Is {_refer(chosen[1], rng)} {colour}?", "yes" if yes else "no"
    present = {(o.shape, o.colour) for o in scene}
    absent = [p for p in product(SHAPES, COLOURS) if p not in present and not _unseen(scene, *p)]
    pairs = sorted(present) if yes else absent
    shape, colour = pairs[int(rng.integers(len(pairs)))]
    return f"Is there {noun_phrase(Mention(shape, colour), rng)}?", "yes" if yes else "no"


def _unseen(scene: Scene, shape: str, colour: str) -> bool:
    """Held-out pairs are not even named where training may see the scene: a "no" would teach that they are not."""
    return is_heldout_pair(shape, colour) and split_of(scene) == "train"


def _ask_relation(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    named = [o for o in scene if sum((o.shape, o.colour) == (p.shape, p.colour) for p in scene) == 1]
    if len(named) < 2:
        return None
    first = named.pop(int(rng.integers(len(named))))
    second = named.pop(int(rng.integers(len(named))))
    relation = _pick(rng, *RELATIONS)
    one, two = (_refer(Mention(o.shape, o.colour), rng) for o in (first, second))
    return f"Is {one} {relation} {two}?", "yes" if _holds(first, relation, second) else "no"


def _holds(first: Object, relation: str, second: Object) -> bool:
    down, right = RELATIONS[relation]
    return (first.row - second.row) * down + (first.col - second.col) * right > 0


_ASKERS: dict[QuestionKind, Callable[[Scene, np.random.Generator], tuple[str, str] | None]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "yes_no": _ask_yes_no,
    "relation": _ask_relation,
}


def _found(scene: Scene, phrase: str) -> list[Object]:
    mention = parse_phrase(phrase.split())
    return [o for o in scene if mention.agrees(o)] if mention else []


def _read_attribute(scene: Scene, name: str, phrase: str) -> str | None:
    found = _found(scene, phrase)
    return str(getattr(found[0], name)) if len(found) == 1 else None


def _read_count(scene: Scene, phrase: str) -> str | None:
    return NUMBER_WORDS[len(_found(scene, phrase))] if parse_phrase(phrase.split()) else None


def _read_presence(scene: Scene, phrase: str) -> str | None:
    if parse_phrase(phrase.split()) is None:
        return None
    return "yes" if _found(scene, phrase) else "no"


def _read_relation(scene: Scene, one: str, relation: str, two: str) -> str | None:
    first, second = _found(scene, one), _found(scene, two)
    if len(first) != 1 or len(second) != 1:
        return None
    return "yes" if _holds(first[0], relation, second[0]) else "no"


def _read_colour_claim(scene: Scene, phrase: str, colour: str) -> str | None:
    found = _found(scene, phrase)
    return ("yes" if found[0].colour == colour else "no") if len(found) == 1 else None


_READERS: tuple[tuple[str, Callable[..., str | None]], ...] = (
    (r"(?:what|which) (colour|shape) is (.+)", _read_attribute),
    (r"how many (.+) are there", _read_count),
    (r"is there (.+)", _read_presence),
    (rf"is (.+) ({'|'.join(RELATIONS)}) (.+)", _read_relation),
    (rf"is (.+) ({'|'.join(COLOUR_WORDS)})", _read_colour_claim),
)
