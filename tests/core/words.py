"""A tokenizer over a closed word list and documents made by hand: small real parts for tests of the method."""

from __future__ import annotations

import numpy as np

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, Role, TextSegment
from oneflow_core.model import ModelConfig

TINY = ModelConfig(
    vocab_size=40,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn=48,
    rope_theta=100.0,
    latent_channels=4,
    patch=2,
    feature_dim=8,
    prediction="clean",
    clean_eps=0.1,
)


class WordTokenizer:
    """Words w2, w3, ... are ids 2, 3, ...; 0 is BOS and 1 the image anchor."""

    bos_id, image_id, vocab_size = 0, 1, 40

    def encode(self, text: str) -> list[int]:
        """`w7 w3` -> [7, 3]."""
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """[7, 3] -> `w7 w3`."""
        return " ".join(f"w{i}" for i in ids)


def text(ids: list[int], role: Role = "auto") -> TextSegment:
    """A text segment of these token ids."""
    return TextSegment(WordTokenizer().decode(ids), role)


def image(role: Role = "auto") -> ImageSegment:
    """An image segment; the sample carries its latent."""
    return ImageSegment("00" * 32, 32, 32, role)


def sample(*segments: TextSegment | ImageSegment, seed: int = 0, side: int = 4) -> Sample:
    """A sample with random latents [4, side, side] and features [4, 8] for each image."""
    document = Document("doc", "test", "CC0-1.0", tuple(segments))
    rng = np.random.default_rng(seed)
    count = len(document.images)
    latents = tuple(rng.standard_normal((4, side, side)).astype(np.float16) for _ in range(count))
    features = tuple(rng.standard_normal((4, 8)).astype(np.float16) for _ in range(count))
    return Sample(document, latents, features)
