"""The corpus's unit: a document is an ordered sequence of text and image segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

SCHEMA_VERSION = 1

Role = Literal["prompt", "target", "auto"]
Kind = Literal["text", "pair", "interleaved", "instruction"]


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
        unknown = set(data) - {"schema", "doc_id", "source", "licence", "segments", "meta"}
        if unknown:
            raise DocumentError(f"unknown field {sorted(unknown)[0]!r}")
        for name in ("doc_id", "source", "licence"):
            if not isinstance(data.get(name), str):
                raise DocumentError(f"{name} must be a string, not {data.get(name)!r}")
        segments = data.get("segments")
        if not isinstance(segments, list) or not segments:
            raise DocumentError("segments must be a non-empty list")
        meta = data.get("meta", {})
        if not isinstance(meta, Mapping) or not all(
            isinstance(k, str) and isinstance(v, str) for k, v in meta.items()
        ):
            raise DocumentError("meta must map strings to strings")
        return cls(
            data["doc_id"],
            data["source"],
            data["licence"],
            tuple(_segment_from_json(s, i) for i, s in enumerate(segments)),
            dict(meta),
        )


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
    where = f"segments[{position}]"
    if not isinstance(data, Mapping):
        raise DocumentError(f"{where} must be an object")
    role = data.get("role", "auto")
    if role not in get_args(Role):
        raise DocumentError(f"{where}.role {role!r} is none of {', '.join(get_args(Role))}")
    match data.get("type"):
        case "text" if isinstance(data.get("text"), str):
            return TextSegment(data["text"], role)
        case "image" if isinstance(data.get("sha256"), str) and all(
            isinstance(data.get(k), int) and data[k] > 0 for k in ("width", "height")
        ):
            return ImageSegment(data["sha256"], data["width"], data["height"], role)
    raise DocumentError(f"{where} is neither a text segment nor an image segment: {dict(data)!r:.200}")
