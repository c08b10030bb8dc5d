"""What every request of the soak got the first time, and whether it gets the same again.

Requests carry seeds of their own and ask for a trace or an image, so that no two answers are alike: an answer that
went to the wrong caller is seen, and named.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

LAST_BITS = 2
"""How far a pixel may be off: the network's last bits depend on what shares the batch."""


@dataclass(frozen=True)
class Answer:
    """A document: what was written, when, and what was drawn."""

    words: str
    pictures: tuple[np.ndarray, ...]
    """Each [height, width, 3], in order."""

    def equals(self, other: Answer) -> bool:
        """The same up to the network's last bits."""
        return (
            self.words == other.words
            and len(self.pictures) == len(other.pictures)
            and all(map(_alike, self.pictures, other.pictures))
        )


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and int(np.abs(one - other).max()) <= LAST_BITS


def of_segments(value: Mapping[str, Any]) -> Answer:
    """The answer of `POST /v1/generate`, with its trace."""
    segments = value["segments"]
    texts = [s["text"] for s in segments if s["type"] == "text"]
    order = [s["type"] for s in segments]
    trace = _rounded(value.get("trace"))
    words = json.dumps([order, texts, trace, value["seed"]], sort_keys=True)
    return Answer(words, tuple(pixels(s["data"]) for s in segments if s["type"] == "image"))


def of_pictures(data: Sequence[str]) -> Answer:
    """Pictures in base64, in order."""
    return Answer("", tuple(map(pixels, data)))


def pixels(data: str) -> np.ndarray:
    """A PNG in base64 as [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.int16)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


@dataclass
class Book:
    """First answers by the request's name; any thread."""

    first: dict[str, Answer] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, name: str, answer: Answer) -> str:
        """Nothing where it is the first or the same as the first; else what it is."""
        with self._lock:
            known = self.first.setdefault(name, answer)
        if known.equals(answer):
            return ""
        others = [n for n, a in list(self.first.items()) if n != name and a.equals(answer)]
        return f"swapped: got the answer of {others[0]}" if others else "another answer than before"

    def twins(self) -> list[tuple[str, str]]:
        """Requests whose answers could not be told apart."""
        held = list(self.first.items())
        return [(n, m) for i, (n, a) in enumerate(held) for m, b in held[i + 1 :] if a.equals(b)]
