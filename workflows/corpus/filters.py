"""Filters: which well-formed documents a source's owner does not want, row by row, each under its own reason."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import field_validator, model_validator

from oneflow_core.document import ImageSegment
from workflows.config import Config

Value = str | int | float | bool
FILTERED = "filtered: "
"""How the reasons of rows begin that are well-formed and not wanted."""


class RangeConfig(Config):
    """From `min` to `max`, both included; None: no bound."""

    min: float | None = None
    """Least that is taken."""
    max: float | None = None
    """Most that is taken."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: nothing would be taken")
        return self

    def holds(self, value: float) -> bool:
        """Whether `value` lies within."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class FiltersConfig(Config):
    """What is left out of a source; a document has to pass all of them, and so has each of its images.

    Columns are the row's own, by the source's names (the fields of a sample's JSON); dots go into what is nested.
    """

    side: RangeConfig | None = None
    """Pixels of the shorter side (`min`) and of the longer side (`max`) of an image, upright."""
    pixels: RangeConfig | None = None
    """Width times height of an image."""
    aspect: RangeConfig | None = None
    """Width over height of an image, upright: {min: 0.5, max: 2}."""
    images: RangeConfig | None = None
    """Images in a document."""
    characters: RangeConfig | None = None
    """Characters of a document's texts, after clean-up."""
    words: RangeConfig | None = None
    """Words of a document's texts: what stands between white space."""
    scores: dict[str, RangeConfig] = {}
    """Column -> its bounds: {similarity: {min: 0.28}, pwatermark: {max: 0.5}}."""
    allow: dict[str, list[Value]] = {}
    """Column -> values that are taken: {language: [en, de]}. They are compared as text."""
    deny: dict[str, list[Value]] = {}
    """Column -> values that are not taken: {NSFW: [NSFW]}."""
    deny_text: list[str] = []
    """Regular expressions; a text in which one is found is not taken. `(?i)` at the start ignores case."""
    deny_images: list[str] = []
    """SHA-256, in hex, of image files that are not taken."""

    @field_validator("deny_text")
    @classmethod
    def _expressions(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @field_validator("deny_images")
    @classmethod
    def _digests(cls, digests: list[str]) -> list[str]:
        wrong = next((d for d in digests if not re.fullmatch(r"[0-9a-fA-F]{64}", d)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is no SHA-256 in hex")
        return sorted(d.lower() for d in digests)

    @property
    def columns(self) -> list[str]:
        """The columns that are looked at."""
        return sorted({*self.scores, *self.allow, *self.deny})


def refusal_of_columns(filters: FiltersConfig, columns: Mapping[str, Any]) -> str:
    """Why a row is not taken for its columns; empty when it is."""
    return next(_of_columns(filters, columns), "")


def refusal_of_texts(filters: FiltersConfig, texts: Sequence[str], images: int) -> str:
    """Why a document of these texts and as many images is not taken; empty when it is."""
    return next(_of_texts(filters, texts, images), "")


def refusal_of_image(filters: FiltersConfig, image: ImageSegment) -> str:
    """Why a document with this image is not taken; empty when it is."""
    return next(_of_image(filters, image), "")


def _of_columns(filters: FiltersConfig, columns: Mapping[str, Any]) -> Iterator[str]:
    found = {name: _value(columns, name) for name in filters.columns}
    yield from (f"filter: no column {name}" for name, value in found.items() if value is None)
    for name, values in filters.allow.items():
        if _plain(found[name]) not in map(_plain, values):
            yield f"{FILTERED}column {name}"
    for name, values in filters.deny.items():
        if _plain(found[name]) in map(_plain, values):
            yield f"{FILTERED}column {name}"
    for name, bounds in filters.scores.items():
        score = _score(found[name])
        if score is None:
            yield f"filter: column {name} is no number"
        elif not bounds.holds(score):
            yield f"{FILTERED}score {name}"


def _of_texts(filters: FiltersConfig, texts: Sequence[str], images: int) -> Iterator[str]:
    if filters.images and not filters.images.holds(images):
        yield f"{FILTERED}images"
    if filters.characters and not filters.characters.holds(sum(map(len, texts))):
        yield f"{FILTERED}characters"
    if filters.words and not filters.words.holds(sum(len(text.split()) for text in texts)):
        yield f"{FILTERED}words"
    if any(re.search(pattern, text) for pattern in filters.deny_text for text in texts):
        yield f"{FILTERED}text"


def _of_image(filters: FiltersConfig, image: ImageSegment) -> Iterator[str]:
    short, long = sorted((image.width, image.height))
    side = filters.side
    if side and ((side.min is not None and short < side.min) or (side.max is not None and long > side.max)):
        yield f"{FILTERED}size"
    if filters.pixels and not filters.pixels.holds(short * long):
        yield f"{FILTERED}pixels"
    if filters.aspect and not filters.aspect.holds(image.width / image.height):
        yield f"{FILTERED}aspect ratio"
    if image.sha256 in filters.deny_images:
        yield f"{FILTERED}image denied"


def _value(columns: Mapping[str, Any], name: str) -> Any:
    """The column of that name, or the field that its dots lead to; None where there is none."""
    if columns.get(name) is not None:
        return columns[name]
    value: Any = columns
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> str:
    """As YAML and JSON write it, so that `true`, `1` and `en` are found whatever type the column has."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _score(value: Any) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(score) else score
