"""The words of the shapes corpus: each attribute's plain word first, then its synonyms."""

from __future__ import annotations

from collections.abc import Mapping

Position = tuple[int | None, int | None]
"""(row, column); None where the words leave it open, as "at the top" does."""

SHAPE_WORDS: Mapping[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "star": ("star",),
}
ANY_SHAPE = ("object", "shape", "thing", "figure")
COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "cobalt"),
    "yellow": ("yellow", "golden"),
    "pink": ("pink", "magenta"),
    "black": ("black", "ebony"),
}
SIZE_WORDS: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
}
NUMBER_WORDS = ("zero", "one", "two", "three", "four")


def _positions() -> dict[Position, tuple[str, ...]]:
    rows, sides = (("top", "upper"), ("middle", "centre"), ("bottom", "lower")), {0: "left", 2: "right"}
    found: dict[Position, tuple[str, ...]] = {(1, 1): ("in the middle", "in the centre")}
    for row, words in enumerate(rows):
        for col, side in sides.items():
            plain = tuple(f"in the {word} {side}" for word in words)
            corner = (f"in the {words[0]} {side} corner", f"at the {words[0]} {side}")
            found[row, col] = plain if row == 1 else plain + corner
        if row != 1:
            found[row, 1] = (f"at the {words[0]} middle", f"at the {words[0]} centre")
            found[row, None] = (f"at the {words[0]}",)
    for col, side in sides.items():
        found[None, col] = (f"on the {side}", f"on the {side} side")
    return found


POSITION_PHRASES: Mapping[Position, tuple[str, ...]] = _positions()
"""Every way to say where something is, by what it says; the canonical one first."""


def plural(noun: str) -> str:
    """The plural of a noun of this lexicon."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _inverse(words: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {synonym: meaning for meaning, synonyms in words.items() for synonym in synonyms}


COLOUR_OF = _inverse(COLOUR_WORDS)
SIZE_OF = _inverse(SIZE_WORDS)
SHAPE_OF: Mapping[str, str | None] = {
    **{form: meaning for noun, meaning in _inverse(SHAPE_WORDS).items() for form in (noun, plural(noun))},
    **{form: None for noun in ANY_SHAPE for form in (noun, plural(noun))},
}
"""Nouns in singular and plural; the nouns that name no shape map to None."""


def _place_names() -> dict[str, Position]:
    names = {p.split(" the ", 1)[1]: place for place, ps in POSITION_PHRASES.items() for p in ps}
    return names | {name.replace("centre", "center"): place for name, place in names.items()}


PLACE_OF: Mapping[str, Position] = _place_names()
"""Places without their preposition: "top left corner" -> (0, 0)."""
