"""One thing that is asked of a model, and what came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from oneflow_core.shapes import Split

Target = Literal["image", "text", "document"]
Part = str | bytes
"""A text, or the bytes of a PNG."""


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, and what is needed to judge what comes back."""

    id: str
    task: str
    """Groups items into figures: t2i/single, caption/multi, vqa, ..."""
    split: Split
    prompt: tuple[Part, ...]
    target: Target
    seed: int
    truth: str
    """What the suite judges against: a scene, a question's answer."""
    scene: str = ""
    """What stands behind it; items of one scene are no independent evidence."""
    detail: str = ""
    """A finer group inside the task: the kind of a question."""
    expected_words: float = 0.0
    """Words that the data has here, where a text is asked for."""
    max_images: int | None = None
    control: str = ""
    """"" for a real item; "no_prompt" for one that is asked without its prompt."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the model made of an item; with an `error`, nothing."""

    parts: tuple[Part, ...] = ()
    error: str = ""
    seconds: float = 0.0
    attempts: int = 0
    model: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The texts, joined by nothing."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[bytes, ...]:
        """The PNG files, in order."""
        return tuple(part for part in self.parts if isinstance(part, bytes))
