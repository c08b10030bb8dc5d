"""CLIP score: how well a picture and a text agree, as a CLIP or a SigLIP sees it (Hessel et al. 2021).

Figures of different encoders, or by different rules, are not comparable; the scores carry both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneflow_core.encoders.dual import BATCH, DualEncoder
from oneflow_core.encoders.text_inputs import check_texts


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """weight * max(cosine of the picture and of `prefix` + text, 0)."""

    weight: float
    prefix: str = ""
    """Stands before every text. It moves the figures."""


PERCENT = ScoreRule(100.0)
"""0 to 100, as torchmetrics and most papers on text-to-image report it."""
HESSEL = ScoreRule(2.5, "A photo depicts ")
"""0 to 2.5 and mostly below 1, of captions, as the paper that named the score reports it (with ViT-B/32)."""


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Figures of pairs of a picture and a text, in the order of the pairs."""

    encoder: str
    """`<name>@<digest>` of weights, preprocessing and tokenizer."""
    kind: str
    """"clip" or "siglip", whose cosines lie in other ranges."""
    rule: ScoreRule
    cosines: tuple[float, ...]
    matches: tuple[float, ...]
    """SigLIP's probability that the pair belongs together, by pair; of a CLIP empty."""
    cut: int
    """Texts, prefix included, that were longer than the encoder reads."""

    @property
    def name(self) -> str:
        """What the figure is called: "clip_score" or "siglip_score"."""
        return f"{self.kind}_score"

    @property
    def each(self) -> tuple[float, ...]:
        """By pair, none below 0."""
        return tuple(self.rule.weight * max(cosine, 0.0) for cosine in self.cosines)

    @property
    def mean(self) -> float:
        """Of `each`, summed without rounding, so that it does not depend on the order of the pairs."""
        return math.fsum(self.each) / len(self.cosines)

    def __add__(self, other: ClipScores) -> ClipScores:
        """The pairs of both, these first.

        Raises:
            ValueError: another encoder or another rule made the other.
        """
        if (self.encoder, self.rule) != (other.encoder, other.rule):
            raise ValueError(
                f"scores of {self.encoder} by {self.rule} and of {other.encoder} by {other.rule} do not "
                "compare; score both with one encoder and one rule"
            )
        cosines, matches = self.cosines + other.cosines, self.matches + other.matches
        return ClipScores(self.encoder, self.kind, self.rule, cosines, matches, self.cut + other.cut)


def clip_score(
    encoder: DualEncoder,
    images_HWC: Sequence[NDArray[np.uint8]],
    texts: Sequence[str],
    *,
    rule: ScoreRule = PERCENT,
    batch: int = BATCH,
) -> ClipScores:
    """Scores of the pairs `images_HWC[i]` (uint8 [H, W, 3], each of its own size) and `texts[i]`.

    Texts longer than the encoder reads are cut and counted. The mean is of scores that are clipped pair by pair, as
    Hessel et al. define it; torchmetrics clips the mean instead, which differs where a cosine is negative.

    Raises:
        ValueError: no pairs, other numbers of images and texts, or a batch below 1; EncoderError, which is one, for
            an image or a text that the encoder cannot take.
    """
    if len(images_HWC) != len(texts):
        raise ValueError(
            f"{len(images_HWC)} images and {len(texts)} texts make no pairs; give one text an image"
        )
    if not len(texts):
        raise ValueError("no pairs to score")
    if batch < 1:
        raise ValueError(f"a batch of {batch} pairs; give at least 1")
    check_texts(texts)
    embedded, cut = encoder.embed_texts([rule.prefix + text for text in texts], batch)
    cosines = (encoder.embed_images(images_HWC, batch) * embedded).sum(-1)
    matches = encoder.match(cosines).tolist() if encoder.kind == "siglip" else []
    return ClipScores(encoder.id, encoder.kind, rule, tuple(cosines.tolist()), tuple(matches), cut)
