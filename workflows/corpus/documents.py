"""Drafts become documents, or are refused: the schema checks that every row of every source passes."""

import hashlib

from oneflow_core.document import Document, ImageSegment, Segment, TextSegment
from workflows.corpus.config import LimitsConfig
from workflows.corpus.pictures import PictureError, probe
from workflows.corpus.sources import Draft, Picture, Refused
from workflows.corpus.sources.protocol import head
from workflows.corpus.units import Unit


class CheckError(ValueError):
    """A segment that is refused; its text is the reason."""


def document_of(draft: Draft, unit: Unit, limits: LimitsConfig) -> Document | Refused:
    """The checked document; its images are decoded once, to the last row, to know that they can be."""
    if sum(isinstance(content, Picture) for content, _ in draft.segments) > limits.images:
        return Refused(draft.key, "too many images")
    segments: list[Segment] = []
    for content, role in draft.segments:
        try:
            if isinstance(content, Picture):
                segments.append(ImageSegment(*_image(content, limits), role))
            else:
                segments.append(TextSegment(_text(content, limits), role))
        except (CheckError, PictureError) as error:
            raw = content.data or content.name.encode() if isinstance(content, Picture) else content
            return Refused(draft.key, str(error), head(raw))
    return Document(
        f"{unit.source}/{unit.stem}/{draft.key}", unit.source, draft.licence, tuple(segments), draft.meta
    )


def sha256_of(picture: Picture) -> str:
    """What names an image everywhere: the SHA-256 of its original bytes."""
    return hashlib.sha256(picture.data or b"").hexdigest()


def _text(text: str, limits: LimitsConfig) -> str:
    if not text.strip():
        raise CheckError("text empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise CheckError("text not utf-8") from None
    if size > limits.text_bytes:
        raise CheckError("text too long")
    return text


def _image(picture: Picture, limits: LimitsConfig) -> tuple[str, int, int]:
    if picture.data is None:
        raise CheckError(picture.reason)
    width, height = probe(picture.data, limits)
    return sha256_of(picture), width, height
