"""Documents of the shapes corpus in memory, with random latents and features of the embedded encoders' shapes."""

from collections.abc import Mapping

import numpy as np

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, Segment, TextSegment
from oneflow_core.shapes import ask, caption, sample_in_split, sample_story

LATENT, FEATURES = (16, 8, 8), (16, 128)
"""Of an image of 64 pixels: 16 patches of 2 x 2, or 16 features."""
KINDS = ("captions", "questions", "stories")
MIXTURES: Mapping[str, Mapping[str, float]] = {
    "shapes": {"captions": 13.0, "questions": 3.0, "stories": 1.0},
    "captions": {"captions": 1.0},
    "stories": {"stories": 1.0},
}
"""Kinds of documents with their weights; `shapes` is the demo's corpus."""


def draw(kind: str, number: int, seed: int) -> Sample:
    """Document `number` of a kind, as `oneflow corpus synth` would make it."""
    rng = np.random.default_rng([seed, KINDS.index(kind), number])
    segments = _segments(kind, rng)
    images = sum(isinstance(segment, ImageSegment) for segment in segments)
    document = Document(f"{kind}-{number}", kind, "CC0-1.0", segments)
    return Sample(
        document,
        tuple(rng.standard_normal(LATENT).astype(np.float16) for _ in range(images)),
        tuple(rng.standard_normal(FEATURES).astype(np.float16) for _ in range(images)),
    )


def _segments(kind: str, rng: np.random.Generator) -> tuple[Segment, ...]:
    picture = "0" * 64, 64, 64
    if kind == "stories":
        texts = sample_story(rng, "train").texts
        return tuple(s for text in texts for s in (TextSegment(text), ImageSegment(*picture)))
    scene = sample_in_split(rng, "train")
    if kind == "captions":
        return TextSegment(caption(scene, rng)), ImageSegment(*picture)
    question = ask(scene, rng)
    return (
        ImageSegment(*picture, "prompt"),
        TextSegment(question.text, "prompt"),
        TextSegment(question.answer, "target"),
    )
