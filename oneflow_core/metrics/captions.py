"""BLEU-4, ROUGE-L and CIDEr of captions, as pycocoevalcap computes them, on tokens as its Java tokenizer cuts them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oneflow_core.metrics.caption_tokens import caption_tokens

Tokens = Sequence[str]
Grams = Counter[tuple[str, ...]]

ORDERS = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Figures of a set of captions. CIDEr is on the scale of the papers divided by 100 (1.0 is their 100)."""

    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4 of the whole set."""
    rouge_l: float
    cider: float
    cider_each: dict[str, float]
    """By image; they hold within this set alone, whose references say how rare a phrase is."""


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
    rouge = [rouge_l(made[name], true[name]) for name in made]
    each = cider(made, true)
    return CaptionScores(
        bleu(list(made.values()), list(true.values())),
        math.fsum(rouge) / len(rouge),
        math.fsum(each.values()) / len(each),
        each,
    )


def grams(tokens: Tokens, order: int) -> Grams:
    """How often each run of `order` tokens occurs."""
    return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))


def bleu(made: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, float, float, float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002), against the reference closest in length."""
    right, tried = [0] * ORDERS, [0] * ORDERS
    length = wanted = 0
    for tokens, truths in zip(made, references, strict=True):
        length += len(tokens)
        wanted += min((abs(len(t) - len(tokens)), len(t)) for t in truths)[1]
        for n in range(ORDERS):
            most: Grams = Counter()
            for truth in truths:
                most |= grams(truth, n + 1)
            right[n] += sum((grams(tokens, n + 1) & most).values())
            tried[n] += max(0, len(tokens) - n)
    brevity = min(1.0, math.exp(1 - (wanted + 1e-9) / (length + 1e-15))) if length else 0.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= (right[n] + 1e-15) / (tried[n] + 1e-9)
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
    seen: Grams = Counter()
    for truths in references.values():
        seen.update({gram for truth in truths for n in range(ORDERS) for gram in grams(truth, n + 1)})
    total = math.log(len(references))
    scores: dict[str, float] = {}
    for name, tokens in made.items():
        ours = _weighted(tokens, seen, total)
        theirs = [_weighted(truth, seen, total) for truth in references[name]]
        scores[name] = 10 * math.fsum(_alike(ours, t) for t in theirs) / len(theirs)
    return scores


@dataclass(frozen=True, slots=True)
class _Weighted:
    orders: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int
    """Runs of two tokens, which is what the official code takes for the length."""


def _weighted(tokens: Tokens, seen: Grams, total: float) -> _Weighted:
    orders = [
        {gram: count * (total - math.log(max(1, seen[gram]))) for gram, count in grams(tokens, n + 1).items()}
        for n in range(ORDERS)
    ]
    norms = [math.sqrt(math.fsum(v * v for v in weights.values())) for weights in orders]
    return _Weighted(orders, norms, max(0, len(tokens) - 1))


def _alike(ours: _Weighted, truth: _Weighted) -> float:
    """Mean over orders of the clipped cosine, less for another length."""
    apart = math.exp(-((ours.length - truth.length) ** 2) / (2 * CIDER_SIGMA**2))
    cosines = []
    for mine, theirs, a, b in zip(ours.orders, truth.orders, ours.norms, truth.norms, strict=True):
        shared = math.fsum(min(w, theirs[g]) * theirs[g] for g, w in mine.items() if g in theirs)
        cosines.append(shared / (a * b) if a and b else shared)
    return apart * math.fsum(cosines) / ORDERS
