"""The corpus's unit: a document is an ordered sequence of text and image segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

SCHEMA_VERSION = 1

Role = Literal["prompt", "target", "auto"]
Kind = Literal["text", "pair", "interleaved", "instruction"]
ROLES = get_args(Role)
FIELDS = frozenset(("schema", "doc_id", "source", "licence", "segments", "meta"))


class DocumentError(ValueError):
    """A document that does not follow the schema; the message names the field."""


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A run of text. `role`: prompt (never corrupted, no loss), target, or auto (the task mixture decides)."""

    text: str
    role: Role = "auto"


@dataclass(frozen=True, slots=True)
class ImageSegment:
    """An image by the sha256 of its original bytes; `width` and `height` are in pixels of the original."""

    sha256: str
    width: int
    height: int
    role: Role = "auto"


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus: identity, provenance, and its segments in reading order."""

    doc_id: str
    source: str
    licence: str
    segments: tuple[Segment, ...]
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImageSegment, ...]:
        """The image segments, in order."""
        return tuple(s for s in self.segments if isinstance(s, ImageSegment))

    @property
    def texts(self) -> tuple[TextSegment, ...]:
        """The text segments, in order."""
        return tuple(s for s in self.segments if isinstance(s, TextSegment))

    @property
    def kind(self) -> Kind:
        """text: no image; instruction: some segment has a fixed role; pair: one image, one text; else interleaved."""
        if any(s.role != "auto" for s in self.segments):
            return "instruction"
        if not self.images:
            return "text"
        return "pair" if len(self.images) == 1 and len(self.texts) == 1 else "interleaved"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with sorted, minimal keys; `from_json` reads it back equal."""
        return {
            "schema": SCHEMA_VERSION,
            "doc_id": self.doc_id,
            "source": self.source,
            "licence": self.licence,
            "segments": [_segment_to_json(s) for s in self.segments],
            "meta": dict(sorted(self.meta.items())),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Document:
        """Reads what `to_json` wrote.

        Raises:
            DocumentError: another schema version, a missing or unknown field, or a field of a wrong type.
        """
        if data.get("schema") != SCHEMA_VERSION:
            raise DocumentError(f"schema {data.get('schema')!r} is not {SCHEMA_VERSION}; rebuild the corpus")
        if not data.keys() <= FIELDS:
            raise DocumentError(f"unknown field {min(data.keys() - FIELDS)!r}")
        doc_id, source, licence = data.get("doc_id"), data.get("source"), data.get("licence")
        if not (isinstance(doc_id, str) and isinstance(source, str) and isinstance(licence, str)):
            raise DocumentError("doc_id, source and licence must be strings")
        segments = data.get("segments")
        if not isinstance(segments, list) or not segments:
            raise DocumentError("segments must be a non-empty list")
        meta = data.get("meta", {})
        if not isinstance(meta, dict):
            raise DocumentError("meta must map strings to strings")
        for key, value in meta.items():
            if not (isinstance(key, str) and isinstance(value, str)):
                raise DocumentError("meta must map strings to strings")
        read = [_segment_from_json(segment, position) for position, segment in enumerate(segments)]
        return cls(doc_id, source, licence, tuple(read), dict(meta))


def _segment_to_json(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, TextSegment):
        return {"type": "text", "text": segment.text, "role": segment.role}
    return {
        "type": "image",
        "sha256": segment.sha256,
        "width": segment.width,
        "height": segment.height,
        "role": segment.role,
    }


def _segment_from_json(data: Any, position: int) -> Segment:
    if not isinstance(data, dict):
        raise DocumentError(f"segments[{position}] must be an object")
    role, kind = data.get("role", "auto"), data.get("type")
    if role not in ROLES:
        raise DocumentError(f"segments[{position}].role {role!r} is none of {', '.join(get_args(Role))}")
    if kind == "text" and isinstance(text := data.get("text"), str):
        return TextSegment(text, role)
    if kind == "image" and isinstance(sha256 := data.get("sha256"), str):
        width, height = data.get("width"), data.get("height")
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            return ImageSegment(sha256, width, height, role)
    found = f"{data!r:.200}"
    raise DocumentError(f"segments[{position}] is neither a text segment nor an image segment: {found}")
