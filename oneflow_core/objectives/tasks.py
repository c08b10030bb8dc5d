"""Which task a document is trained on this time: roles for its segments, and the clock that corrupts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oneflow_core.document import Document, ImageSegment, TextSegment
from oneflow_core.flows.times import check_law

TASKS = ("text", "text_to_image", "image_to_text", "concurrent", "interleaved", "instruction")
"""What can be asked for, by name."""


@dataclass(frozen=True)
class TaskMixture:
    """How `auto` documents are used.

    Raises:
        ValueError: times of an unknown name.
    """

    concurrent: float = 0.2
    """Share of image-text pairs whose text and image are generated at once (paper section 3.2: 0.2)."""
    text_to_image: float = 0.5
    """Share of text-to-image among the other pairs (not disclosed by the paper; Transfusion 0.8)."""
    prompt_dropout: float = 0.1
    """Share of examples whose prompt is dropped, for classifier-free guidance (not disclosed; Edit Flows 0.1)."""
    story_prompt: float = 0.3
    """Share of interleaved documents whose first text is given as the prompt (ours)."""
    reencoded: float = 0.0
    """Share of interleaved documents whose finished images are shown as understanding features, as a sampler with
    `reencode` shows them (ours; not for masked). The features are those that the shard holds of the real image; those
    of a round trip through the codec would be nearer to what sampling sees."""
    concurrent_times: str = "independent"
    """Joint law of t_text and t_img in pairs that are generated at once (`flows.times`): independent (the paper),
    interleaved, reversed, fixed. For oneflow."""
    interleaved_times: str = "interleaved"
    """The same in interleaved documents: interleaved (the paper) alone learns where images go; the others take their
    number and places as given. For oneflow."""

    def __post_init__(self) -> None:
        check_law(self.concurrent_times)
        check_law(self.interleaved_times)


@dataclass(frozen=True)
class Part:
    """One segment with its role decided; `image` is its number among the document's images, -1 for text."""

    text: str
    image: int
    prompt: bool


@dataclass(frozen=True)
class Task:
    """What to corrupt and how."""

    parts: tuple[Part, ...]
    times: str
    """Joint law of its clocks, by the names of `flows.times`."""
    text_clean: bool
    """The text is given or absent: its clock stands at 1 and it has no loss."""
    reencoded: bool = False
    """Finished images are shown as features."""
    name: str = ""
    """One of `TASKS`; a dropped prompt does not change it."""

    @property
    def prompt_images(self) -> int:
        """How many images are given."""
        return sum(part.prompt and part.image >= 0 for part in self.parts)


def choose_task(document: Document, mixture: TaskMixture, rng: np.random.Generator) -> Task:
    """Decides the roles of a document's `auto` segments (METHOD 3.1)."""
    parts = list(_parts(document))
    times, reencoded = "independent", False
    if document.kind == "pair":
        parts = _pair(parts, mixture, rng)
        if not any(p.prompt for p in parts):
            times = mixture.concurrent_times
    elif document.kind == "interleaved":
        times = mixture.interleaved_times
        if rng.random() < mixture.story_prompt and parts[0].image < 0:
            parts[0] = Part(parts[0].text, -1, prompt=True)
        reencoded = mixture.reencoded > 0 and rng.random() < mixture.reencoded
    targets = [p for p in parts if not p.prompt]
    name = document.kind if document.kind != "pair" else _pair_name(targets)
    if targets and len(targets) < len(parts) and rng.random() < mixture.prompt_dropout:
        parts = targets
    # Where no element is inserted, the text has no clock that images could share.
    if times != "interleaved" and all(p.prompt or p.image >= 0 for p in parts):
        return Task(tuple(parts), "independent", text_clean=True, reencoded=reencoded, name=name)
    return Task(tuple(parts), times, text_clean=False, reencoded=reencoded, name=name)


def _pair_name(targets: Sequence[Part]) -> str:
    if len(targets) > 1:
        return "concurrent"
    return "text_to_image" if all(part.image >= 0 for part in targets) else "image_to_text"


def _parts(document: Document) -> Sequence[Part]:
    images = 0
    parts = []
    for segment in document.segments:
        prompt = segment.role == "prompt"
        if isinstance(segment, TextSegment):
            parts.append(Part(segment.text, -1, prompt))
        elif isinstance(segment, ImageSegment):
            parts.append(Part("", images, prompt))
            images += 1
    return parts


def _pair(parts: list[Part], mixture: TaskMixture, rng: np.random.Generator) -> list[Part]:
    text = next(p for p in parts if p.image < 0)
    image = next(p for p in parts if p.image >= 0)
    if rng.random() < mixture.concurrent:
        return [text, image]
    if rng.random() < mixture.text_to_image:
        return [Part(text.text, -1, prompt=True), image]
    return [Part("", image.image, prompt=True), text]
