"""Captions of scenes: a canonical one, paraphrases with synonyms and things left unsaid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from oneflow_core.shapes.lexicon import (
    ANY_SHAPE,
    COLOUR_WORDS,
    NUMBER_WORDS,
    POSITION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    plural,
)
from oneflow_core.shapes.phrases import Mention, parse_text
from oneflow_core.shapes.scene import Object, Scene

SYNONYM_SHARE = 0.2
"""Share of words for which a synonym may stand."""
POSITION_SHARE = 0.6
SIZE_SHARE = 0.4
UNSAID_SHARE = 0.02
"""Share of mentions that leave the shape or the colour unsaid, each."""
LEADS = (
    "a picture of",
    "an image of",
    "a drawing with",
    "there is",
    "we see",
    "this picture shows",
    "here is",
)
FULL_SENTENCE = {"there is", "we see", "this picture shows", "here is"}


@dataclass(frozen=True, slots=True)
class _Said:
    """A thing to be said of one or several alike objects."""

    mention: Mention
    count: int = 1


def canonical_caption(scene: Scene) -> str:
    """The one caption that says everything of every object, in reading order."""
    return _join([_item(_Said(mention_of(thing)), None) for thing in scene])


def mention_of(thing: Object) -> Mention:
    """The mention that says everything of an object."""
    return Mention(thing.shape, thing.colour, thing.size, thing.row, thing.col)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of `scene` that is true of it and names every object once, in one of many wordings.

    Shape and colour are nearly always said, size and position often not.
    """
    return describe([_unsay(mention_of(thing), rng) for thing in scene], rng)


def describe(mentions: Sequence[Mention], rng: np.random.Generator) -> str:
    """A wording that says exactly `mentions`; `parse` gives them back, alike ones perhaps drawn together."""
    said = _group(mentions, rng)
    style = rng.random()
    if style < 0.15 and all(s.count == 1 for s in said):
        return " ".join(_sentence(_placed_sentence(s.mention, rng)) for s in said)
    items = [_item(s, rng) for s in said]
    lead = LEADS[int(rng.integers(len(LEADS)))] if style < 0.6 else ""
    if len(items) > 1 and rng.random() < 0.25:
        lead = "there is"
        return " ".join(_sentence(f"{_agree(lead, s)} {item}") for s, item in zip(said, items, strict=True))
    text = f"{_agree(lead, said[0])} {_join(items)}" if lead else _join(items)
    return _sentence(text) if lead in FULL_SENTENCE or rng.random() < 0.3 else text


def parse(text: str) -> list[Mention] | None:
    """What a caption says: one `Mention` an object, in the order of the words; None for any other text.

    Case and punctuation do not matter. Reads every text that `caption` and `canonical_caption` write.
    """
    mentions = _parsed(text)
    return None if mentions is None else list(mentions)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Mention, ...] | None:
    """Controls hold the same texts against many scenes."""
    mentions = parse_text(text)
    return None if mentions is None else tuple(mentions)


def noun_phrase(
    mention: Mention,
    rng: np.random.Generator | None,
    *,
    article: str = "a",
    count: int = 1,
    adjoin: bool = False,
) -> str:
    """The words for a mention without its place: "a small red circle"; canonical words when `rng` is None.

    `adjoin` allows the attributes to follow the noun: "a circle that is small and red".
    """
    noun = _word(SHAPE_WORDS[mention.shape], rng) if mention.shape else _word(ANY_SHAPE, rng)
    size = _word(SIZE_WORDS[mention.size], rng) if mention.size else ""
    colour = _word(COLOUR_WORDS[mention.colour], rng) if mention.colour else ""
    if adjoin and rng is not None and count == 1 and colour and rng.random() < 0.1:
        attributes = " and ".join(filter(None, (size, colour)))
        return _with_article(f"{noun} that is {attributes}", article)
    words = " ".join(filter(None, (size, colour, plural(noun) if count > 1 else noun)))
    return f"{NUMBER_WORDS[count]} {words}" if count > 1 else _with_article(words, article)


def place_phrase(mention: Mention, rng: np.random.Generator | None) -> str:
    """The words for where the mention is, or "" where it does not say."""
    place = (mention.row, mention.col)
    return _word(POSITION_PHRASES[place], rng, 0.6) if place != (None, None) else ""


def _unsay(mention: Mention, rng: np.random.Generator) -> Mention:
    """Leaves things out: always at least the shape or the colour remains."""
    chance = rng.random(4)
    row, col = mention.row, mention.col
    if chance[0] >= POSITION_SHARE:
        row = col = None
    elif chance[1] < 0.2:
        row, col = _coarse(row, col, rng)
    size = mention.size if chance[2] < SIZE_SHARE else None
    shape = None if chance[3] < UNSAID_SHARE else mention.shape
    colour = None if UNSAID_SHARE <= chance[3] < 2 * UNSAID_SHARE else mention.colour
    return Mention(shape, colour, size, row, col)


def _coarse(row: int | None, col: int | None, rng: np.random.Generator) -> tuple[int | None, int | None]:
    """Only the row or only the column, where the words for it exist."""
    choices = [place for place in ((row, None), (None, col)) if place in POSITION_PHRASES]
    return choices[int(rng.integers(len(choices)))] if choices else (row, col)


def _group(mentions: Sequence[Mention], rng: np.random.Generator) -> list[_Said]:
    """Alike mentions without a place become one with a count, half of the time."""
    if rng.random() < 0.5:
        return [_Said(m) for m in mentions]
    counts: dict[Mention | int, _Said] = {}
    for index, mention in enumerate(mentions):
        key = mention if (mention.row, mention.col) == (None, None) else index
        counts[key] = _Said(mention, counts[key].count + 1 if key in counts else 1)
    return list(counts.values())


def _item(said: _Said, rng: np.random.Generator | None) -> str:
    phrase = noun_phrase(said.mention, rng, count=said.count, adjoin=True)
    return f"{phrase} {place_phrase(said.mention, rng)}".strip()


def _placed_sentence(mention: Mention, rng: np.random.Generator) -> str:
    place, style = place_phrase(mention, rng), rng.random()
    if not place:
        return f"there is {noun_phrase(mention, rng)}"
    if style < 0.4:
        return f"{place} is {noun_phrase(mention, rng)}"
    if style < 0.7 or not mention.colour or mention.size:
        return f"{noun_phrase(mention, rng)} is {place}"
    bare = Mention(mention.shape, None, None, None, None)
    return f"{noun_phrase(bare, rng, article='the')} {place} is {_word(COLOUR_WORDS[mention.colour], rng)}"


def _word(words: Sequence[str], rng: np.random.Generator | None, share: float = SYNONYM_SHARE) -> str:
    if rng is None or len(words) == 1 or rng.random() >= share:
        return words[0]
    return words[1 + int(rng.integers(len(words) - 1))]


def _with_article(words: str, article: str) -> str:
    return f"an {words}" if article == "a" and words[0] in "aeiou" else f"{article} {words}"


def _agree(lead: str, said: _Said) -> str:
    return lead.replace(" is", " are") if said.count > 1 and lead in ("there is", "here is") else lead


def _join(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
