"""Conversations about images: what the person says is the prompt, what the model answers the target."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from oneflow_core.document import Role
from workflows.corpus.sources.drafting import Segments
from workflows.corpus.sources.images import Images
from workflows.corpus.sources.rows import RowError, text_of

ROLES: dict[str, Role] = {
    "human": "prompt",
    "user": "prompt",
    "system": "prompt",
    "gpt": "target",
    "assistant": "target",
    "model": "target",
}
_MARK = re.compile(r"\s*<image>\s*")


def turns(spoken: Any, images: Sequence[Any], places: Images) -> Segments:
    """Segments of all turns in order, the images at their `<image>` marks.

    Images without a mark come before the first turn.

    Raises:
        RowError: no conversation, a speaker that is not known, or more marks than images.
    """
    if not isinstance(spoken, list) or not spoken:
        raise RowError("conversation malformed")
    said = [piece for turn in spoken for piece in _pieces(turn)]
    marks = sum(piece is None for piece, _ in said)
    if marks > len(images):
        raise RowError("image missing" if not images else "more marks than images")
    left = iter(images)
    segments: Segments = [(places.picture(next(left)), "prompt") for _ in range(len(images) - marks)]
    for piece, role in said:
        segments.append((places.picture(next(left)) if piece is None else piece, role))
    if not any(role == "target" for _, role in segments):
        raise RowError("answer missing")
    return segments


def _pieces(turn: Any) -> list[tuple[str | None, Role]]:
    """Texts of a turn, and None for each image between them."""
    if not isinstance(turn, Mapping):
        raise RowError("conversation malformed")
    if "user" in turn and "assistant" in turn:
        return [*_cut(text_of(turn["user"]), "prompt"), *_cut(text_of(turn["assistant"]), "target")]
    speaker = turn.get("from", turn.get("role"))
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise RowError("speaker not known")
    value = turn.get("value", turn.get("content"))
    if isinstance(value, list):
        return [piece for part in value for piece in _part(part, role)]
    return _cut(text_of(value), role)


def _cut(text: str, role: Role) -> list[tuple[str | None, Role]]:
    pieces: list[tuple[str | None, Role]] = []
    for number, piece in enumerate(_MARK.split(text)):
        pieces += [(None, role)] if number else []
        pieces += [(piece, role)] if piece.strip() else []
    return pieces


def _part(part: Any, role: Role) -> list[tuple[str | None, Role]]:
    """A part of a turn whose content is a list: {type: image} or {type: text, text}."""
    if not isinstance(part, Mapping):
        raise RowError("conversation malformed")
    return [(None, role)] if part.get("type") == "image" else _cut(text_of(part.get("text")), role)
