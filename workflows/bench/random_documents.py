"""Documents for benchmarks: token ids drawn at random, with random latents and features; nothing is read."""

from collections.abc import Sequence

import numpy as np

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, Role, TextSegment
from oneflow_core.objectives import OneFlowObjective
from oneflow_core.packing import Pack, collate


class Ids:
    """A tokenizer of texts that are lists of ids; what it has seen it knows by heart."""

    bos_id, image_id = 0, 1

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """`7 3` -> [7, 3]."""
        if text not in self._known:
            self._known[text] = [int(word) for word in text.split()]
        return self._known[text]


def text(rng: np.random.Generator, length: int, vocab: int, role: Role = "auto") -> TextSegment:
    """A text of `length` ids."""
    return TextSegment(" ".join(map(str, rng.integers(2, vocab, length))), role)


def sample(
    segments: Sequence[TextSegment | ImageSegment],
    rng: np.random.Generator,
    *,
    channels: int = 16,
    side: int = 32,
    features: tuple[int, int] = (0, 0),
) -> Sample:
    """A document of these segments; each image has a latent [channels, side, side] and features [count, width]."""
    document = Document(f"bench-{rng.integers(1 << 62):x}", "bench", "CC0-1.0", tuple(segments))
    images = len(document.images)
    latents = tuple(rng.standard_normal((channels, side, side)).astype(np.float16) for _ in range(images))
    shown = tuple(rng.standard_normal(features).astype(np.float16) for _ in range(images))
    return Sample(document, latents, shown)


def image(side: int, role: Role = "auto") -> ImageSegment:
    """An image of `side` pixels."""
    return ImageSegment("00" * 32, side, side, role)


def packed_pairs(objective: OneFlowObjective, tokens: int, caption: int, side: int, seed: int) -> Pack:
    """A pack of as many texts of `caption` ids beside a latent of `side` as have `tokens` tokens, corrupted."""
    rng, dims = np.random.default_rng(seed), objective.model
    patches = (side // dims.patch) ** 2
    documents = [
        sample([text(rng, caption, dims.vocab_size), image(side * 8)], rng, side=side)
        for _ in range(tokens // (caption + patches))
    ]
    return collate([objective.corrupt(d, rng) for d in documents])
