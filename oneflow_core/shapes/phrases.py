"""Reading captions: a backtracking recursive-descent parser over words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from oneflow_core.shapes.lexicon import COLOUR_OF, NUMBER_WORDS, PLACE_OF, SHAPE_OF, SIZE_OF
from oneflow_core.shapes.scene import Object

MAX_WORDS = 120
"""Longer texts are no captions of ours; the bound keeps the parser's time small on anything."""
_ARTICLES = {"a", "an", "one", "the", "another"}
_LEADS = (
    *product(
        ("a", "an", "the", "this"),
        ("picture", "image", "drawing", "scene"),
        ("of", "with", "showing", "shows", "contains", "has"),
    ),
    *(("there", verb) for verb in ("is", "are")),
    *(("here", verb) for verb in ("is", "are")),
    ("we", "see"),
    ("i", "see"),
)
_VERBS = {"is", "are", "sits", "lies"}
_LINKS = {"and", "also"}
Words = Sequence[str]


@dataclass(frozen=True, slots=True)
class Mention:
    """What a text says of one object; None where it says nothing."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    row: int | None = None
    col: int | None = None

    def agrees(self, thing: Object) -> bool:
        """Whether everything that is said is true of the object."""
        return all(said is None or said == getattr(thing, name) for name, said in self.said().items())

    def said(self) -> dict[str, str | int]:
        """The attributes that are said, by name."""
        names = ("shape", "colour", "size", "row", "col")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def words_of(text: str) -> list[str]:
    """Lower-case words; punctuation and case are gone. Letters beyond ASCII stay, so that they match nothing."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def parse_text(text: str) -> list[Mention] | None:
    """The mentions of a caption, or None where the text is none."""
    words = words_of(text)
    if not words or len(words) > MAX_WORDS:
        return None
    dead: set[int] = set()

    def items(start: int) -> list[Mention] | None:
        if start == len(words):
            return []
        if start not in dead:
            for mentions, end in _item(words, start):
                rest = items(end)
                if rest is not None:
                    return mentions + rest
            dead.add(start)
        return None

    return items(0)


def parse_phrase(words: Words) -> Mention | None:
    """The one mention that the words make up: a noun phrase, with or without a place."""
    for mention, count, end in _noun_phrase(words, 0):
        if end == len(words) and count == 1:
            return mention
        for place, stop in _place(words, end):
            if stop == len(words) and count == 1:
                return replace(mention, row=place[0], col=place[1])
    return None


def parse_place(words: Words) -> tuple[int | None, int | None] | None:
    """Where the words say, with or without a preposition: "to the top left corner" -> (0, 0)."""
    for place, end in _place(words, 0):
        if end == len(words):
            return place
    return None


def _item(words: Words, start: int) -> Iterator[tuple[list[Mention], int]]:
    for begin in _openings(words, start):
        yield from _noun_first(words, begin)
        for place, verb in _place(words, begin):
            if verb < len(words) and words[verb] in _VERBS:
                for mention, count, end in _noun_phrase(words, verb + 1):
                    yield [replace(mention, row=place[0], col=place[1])] * count, end


def _noun_first(words: Words, begin: int) -> Iterator[tuple[list[Mention], int]]:
    for mention, count, end in _noun_phrase(words, begin):
        for after in (end + 1, end) if end < len(words) and words[end] in _VERBS else (end,):
            for place, stop in _place(words, after):
                placed = replace(mention, row=place[0], col=place[1])
                if mention.colour is None and words[begin] == "the":
                    yield from _predicate(words, stop, placed)
                yield [placed] * count, stop
        yield [mention] * count, end


def _predicate(words: Words, start: int, mention: Mention) -> Iterator[tuple[list[Mention], int]]:
    """ "... is red", after "the circle in the middle"."""
    if start + 1 < len(words) and words[start] in _VERBS and words[start + 1] in COLOUR_OF:
        yield [replace(mention, colour=COLOUR_OF[words[start + 1]])], start + 2


def _openings(words: Words, start: int) -> Iterator[int]:
    """Where an item may begin after linking and leading words."""
    if start > 0 and words[start] in _LINKS:
        start += 1
    for lead in _LEADS:
        if tuple(words[start : start + len(lead)]) == lead:
            yield start + len(lead)
    yield start


def _noun_phrase(words: Words, start: int) -> Iterator[tuple[Mention, int, int]]:
    """(mention, count, end) of a noun phrase at `start`."""
    if start >= len(words):
        return
    count = NUMBER_WORDS.index(words[start]) if words[start] in NUMBER_WORDS[2:] else 1
    at = start + 1 if count > 1 or words[start] in _ARTICLES else start
    said: dict[str, str] = {}
    at = _attributes(words, at, said)
    for length in (2, 1):
        noun = " ".join(words[at : at + length])
        if len(words) >= at + length and noun in SHAPE_OF:
            mention = Mention(SHAPE_OF[noun], said.get("colour"), said.get("size"))
            yield from _adjoined(words, at + length, mention, count)
            yield mention, count, at + length


def _adjoined(words: Words, start: int, mention: Mention, count: int) -> Iterator[tuple[Mention, int, int]]:
    """ "... that is small and red", "... in red", after a noun."""
    lead = 2 if tuple(words[start : start + 2]) in (("that", "is"), ("that", "are")) else 0
    if not lead and start < len(words) and words[start] == "in":
        lead = 1
    said: dict[str, str] = {}
    end = _attributes(words, start + lead, said, link="and")
    twice = any(getattr(mention, name) is not None for name in said)
    if lead and said and not twice:
        colour, size = said.get("colour", mention.colour), said.get("size", mention.size)
        yield replace(mention, colour=colour, size=size), count, end


def _attributes(words: Words, at: int, said: dict[str, str], link: str = "") -> int:
    """Reads at most one size and one colour into `said`; returns where they end."""
    while at < len(words):
        step = 1 if link and said and words[at] == link and at + 1 < len(words) else 0
        word = words[at + step]
        if word in SIZE_OF and "size" not in said:
            said["size"] = SIZE_OF[word]
        elif word in COLOUR_OF and "colour" not in said:
            said["colour"] = COLOUR_OF[word]
        else:
            break
        at += step + 1
    return at


def _place(words: Words, start: int) -> Iterator[tuple[tuple[int | None, int | None], int]]:
    """Places at `start`, the longest first."""
    at = start
    if at < len(words) and words[at] in ("in", "at", "on", "to"):
        at += 1
        at += at < len(words) and words[at] == "the"
        for length in (3, 2, 1):
            name = " ".join(words[at : at + length])
            if at + length <= len(words) and name in PLACE_OF:
                yield PLACE_OF[name], at + length
