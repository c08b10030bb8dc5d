"""How a document came to be, in words: which piece of text was put where, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneflow_core.sampling.types import Trace as TokenTrace
    from oneflow_core.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Insertion:
    """A piece of a finished text. `start` counts characters of its segment; time is in [0, 1]."""

    segment: int
    start: int
    text: str
    time: float
    step: int


@dataclass(frozen=True, slots=True)
class Birth:
    """When an image was put into the document; one that was asked for is there from time 0."""

    segment: int
    time: float
    step: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Insertions in reading order, births of images, forward passes taken, and tokens taken out again."""

    insertions: tuple[Insertion, ...]
    images: tuple[Birth, ...]
    passes: int
    deleted: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "insertions": [asdict(i) for i in self.insertions],
            "images": [asdict(i) for i in self.images],
            "passes": self.passes,
            "deleted": self.deleted,
        }


def decode_trace(trace: TokenTrace, tokenizer: Tokenizer) -> Trace:
    """Tokens as pieces of text. The pieces of a segment joined are its text.

    A character whose bytes came as several tokens is one piece, at the time of the last of them.
    """
    insertions: list[Insertion] = []
    images: list[Birth] = []
    segment, run = 0, []
    for index, token in enumerate(trace.token):
        if token != tokenizer.image_id:
            run.append(index)
            continue
        if run:
            insertions += _pieces(trace, run, segment, tokenizer)
            segment, run = segment + 1, []
        images.append(Birth(segment, trace.time[index], trace.step[index]))
        segment += 1
    insertions += _pieces(trace, run, segment, tokenizer)
    return Trace(tuple(insertions), tuple(images), trace.passes, trace.deleted)


def _pieces(trace: TokenTrace, run: Sequence[int], segment: int, tokenizer: Tokenizer) -> list[Insertion]:
    ids = [trace.token[i] for i in run]
    pieces: list[Insertion] = []
    first = start = 0
    for last in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[first:last])
        if not text or (text.endswith("\ufffd") and last < len(ids)):
            continue
        part = run[first:last]
        time, step = max(trace.time[i] for i in part), max(trace.step[i] for i in part)
        pieces.append(Insertion(segment, start, text, time, step))
        first, start = last, start + len(text)
    return pieces
