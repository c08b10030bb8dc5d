"""Drafts become documents, or are refused: the checks, clean-up and filters that every row of every source passes."""

import hashlib
from dataclasses import dataclass

from oneflow_core.document import Document, ImageSegment, Role, Segment, TextSegment
from workflows.corpus.cleanup import TextError, cleaned
from workflows.corpus.config import CorpusConfig
from workflows.corpus.filters import FiltersConfig, refusal_of_columns, refusal_of_image, refusal_of_texts
from workflows.corpus.pictures import PictureError, probe
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources import Draft, Picture, Refused
from workflows.corpus.sources.protocol import head
from workflows.corpus.units import Unit

Cleaned = list[str | Picture]
DROPPED = "images_dropped"
"""In a document's meta: how many of its images could not be taken."""


class CheckError(ValueError):
    """A row that is refused; its text is the reason. `head` is what to keep of it."""

    def __init__(self, reason: str, head: bytes = b"") -> None:
        super().__init__(reason)
        self.head = head


@dataclass(frozen=True, slots=True)
class Checked:
    """A document, and how many of its texts clean-up changed."""

    document: Document
    cleaned: int


def document_of(draft: Draft, unit: Unit, config: CorpusConfig) -> Checked | Refused:
    """The checked document. What costs least is looked at first; its images are probed, not decoded."""
    source = next(source for source in config.sources if source.name == unit.source)
    try:
        _check_names(draft)
        _columns(draft, source.filters)
        contents = _texts(draft, config, source.filters)
        segments, dropped = _segments(draft, contents, config, source)
    except CheckError as error:
        return Refused(draft.key, str(error), error.head)
    changed = sum(new != old for new, (old, _) in zip(contents, draft.segments, strict=True))
    key = f"{unit.source}/{unit.stem}/{draft.key}"
    meta = {**draft.meta, DROPPED: str(dropped)} if dropped else draft.meta
    return Checked(Document(key, unit.source, draft.licence, segments, meta), changed)


def sha256_of(picture: Picture) -> str:
    """What names an image everywhere: the SHA-256 of its original bytes."""
    return hashlib.sha256(picture.data or b"").hexdigest()


def _check_names(draft: Draft) -> None:
    try:
        draft.key.encode()
        draft.licence.encode()
        "".join(text for item in draft.meta.items() for text in item).encode()
    except UnicodeEncodeError:
        raise CheckError("text not utf-8", head(f"{draft.key} {draft.licence} {draft.meta}")) from None


def _columns(draft: Draft, filters: FiltersConfig) -> None:
    reason = refusal_of_columns(filters, draft.columns)
    if reason:
        # What a row lacks is best seen by what it has; of what is only not wanted nothing is kept.
        names = ", ".join(sorted(map(str, draft.columns)))
        raise CheckError(reason, head(f"its columns: {names}") if reason.startswith("filter:") else b"")


def _texts(draft: Draft, config: CorpusConfig, filters: FiltersConfig) -> Cleaned:
    """The contents of the segments, texts in their one form."""
    images = sum(isinstance(content, Picture) for content, _ in draft.segments)
    if images > config.limits.images:
        raise CheckError("too many images")
    found: Cleaned = []
    for content, _ in draft.segments:
        found.append(content if isinstance(content, Picture) else _text(content, config))
    _filter(refusal_of_texts(filters, [text for text in found if isinstance(text, str)], images))
    return found


def _text(text: str, config: CorpusConfig) -> str:
    try:
        return cleaned(text, config.cleanup, config.limits.text_bytes)
    except TextError as error:
        raise CheckError(str(error), head(text)) from None


def _segments(
    draft: Draft, contents: Cleaned, config: CorpusConfig, source: SourceConfig
) -> tuple[tuple[Segment, ...], int]:
    """The checked segments, and how many images were dropped; the last image is never dropped."""
    found: list[Segment] = []
    errors: list[CheckError] = []
    for content, (_, role) in zip(contents, draft.segments, strict=True):
        try:
            found.append(_segment(content, role, config, source.filters))
        except CheckError as error:
            if not source.drops_images:
                raise
            errors.append(error)
    if errors and not any(isinstance(segment, ImageSegment) for segment in found):
        raise errors[0]
    return (_joined(found, config.limits.text_bytes) if errors else tuple(found)), len(errors)


def _joined(segments: list[Segment], most_bytes: int) -> tuple[Segment, ...]:
    """Texts between which an image was are one, as they are where there never was one, if that is not too long."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if isinstance(segment, TextSegment) and isinstance(last, TextSegment) and last.role == segment.role:
            text = f"{last.text} {segment.text}"
            if len(text.encode()) <= most_bytes:
                found[-1] = TextSegment(text, last.role)
                continue
        found.append(segment)
    return tuple(found)


def _segment(content: str | Picture, role: Role, config: CorpusConfig, filters: FiltersConfig) -> Segment:
    if not isinstance(content, Picture):
        return TextSegment(content, role)
    if content.data is None:
        raise CheckError(content.reason, head(content.name))
    try:
        width, height = probe(content.data, config.limits)
    except PictureError as error:
        raise CheckError(str(error), head(content.data or content.name)) from None
    image = ImageSegment(sha256_of(content), width, height, role)
    _filter(refusal_of_image(filters, image))
    return image


def _filter(reason: str) -> None:
    if reason:
        raise CheckError(reason)
