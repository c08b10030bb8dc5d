"""BLEU-4, ROUGE-L and CIDEr of captions, as pycocoevalcap computes them, on tokens as its Java tokenizer cuts them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.caption_tokens import caption_tokens
from oneflow_core.metrics.cider import CiderTable
from oneflow_core.metrics.grams import ORDERS, Grams, Tokens, grams

ROUGE_BETA = 1.2


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Figures of a set of captions. CIDEr is on the scale of the papers divided by 100 (1.0 is their 100)."""

    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4 of the whole set."""
    rouge_l: float
    cider: float
    cider_each: dict[str, float]
    """By image; they hold within this set alone, whose references say how rare a phrase is."""
    rouge_l_each: dict[str, float]
    """By image."""


def score_captions(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """One caption an image against its references; every image of `captions` must have some.

    Raises:
        ValueError: no captions, or an image without references.
    """
    if not captions:
        raise ValueError("no captions to score")
    if missing := [name for name in captions if not references.get(name)]:
        raise ValueError(f"image {missing[0]} has no reference caption ({len(missing)} such); leave them out")
    made = {name: caption_tokens(text) for name, text in captions.items()}
    true = {name: [caption_tokens(text) for text in references[name]] for name in captions}
    rouge = {name: rouge_l(made[name], true[name]) for name in made}
    each = cider(made, true)
    return CaptionScores(
        bleu(list(made.values()), list(true.values())),
        math.fsum(rouge.values()) / len(rouge),
        math.fsum(each.values()) / len(each),
        each,
        rouge,
    )


def bleu(made: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, float, float, float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002), against the reference closest in length."""
    counts = [bleu_counts(tokens, truths) for tokens, truths in zip(made, references, strict=True)]
    return bleu_of(np.sum(counts, axis=0))


def bleu_counts(tokens: Tokens, truths: Sequence[Tokens]) -> NDArray[np.float64]:
    """What BLEU sums over captions: right and tried runs of 1 to 4 tokens, length, wanted length: [10]."""
    right = []
    for n in range(ORDERS):
        most: Grams = Counter()
        for truth in truths:
            most |= grams(truth, n + 1)
        right.append(sum((grams(tokens, n + 1) & most).values()))
    tried = [max(0, len(tokens) - n) for n in range(ORDERS)]
    wanted = min((abs(len(t) - len(tokens)), len(t)) for t in truths)[1]
    return np.array([*right, *tried, len(tokens), wanted], np.float64)


def bleu_of(counts: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 from the sums [10] of `bleu_counts`."""
    right, tried, (length, wanted) = counts[:ORDERS], counts[ORDERS : 2 * ORDERS], counts[2 * ORDERS :]
    brevity = min(1.0, math.exp(1 - (wanted + 1e-9) / (length + 1e-15))) if length else 0.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= float((right[n] + 1e-15) / (tried[n] + 1e-9))
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores[0], scores[1], scores[2], scores[3]


def rouge_l(tokens: Tokens, references: Sequence[Tokens]) -> float:
    """F of the longest common subsequence (Lin 2004), of the best precision and the best recall, beta 1.2."""
    common = [_subsequence(tokens, truth) for truth in references]
    precision = max(c / max(1, len(tokens)) for c in common)
    recall = max(c / max(1, len(truth)) for c, truth in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for a in first:
        corner = 0
        for place, b in enumerate(second, 1):
            corner, row[place] = row[place], corner + 1 if a == b else max(row[place], row[place - 1])
    return row[-1]


def cider(made: Mapping[str, Tokens], references: Mapping[str, Sequence[Tokens]]) -> dict[str, float]:
    """CIDEr-D of each image (Vedantam et al. 2015): clipped tf-idf cosines of 1 to 4 tokens, times 10.

    How rare a run of tokens is, is counted over the images of `references`.
    """
    return dict(zip(made, CiderTable(made, references).scores().tolist(), strict=True))
