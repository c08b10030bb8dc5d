"""Captions of pictures against people's: CIDEr-D, BLEU-4 and ROUGE-L as pycocoevalcap 1.2 computes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.caption_tokens import caption_tokens
from oneflow_core.metrics.captions import bleu_counts, bleu_of, rouge_l, score_captions
from oneflow_core.metrics.cider import CiderTable
from oneflow_core.metrics.control import derangement
from oneflow_core.metrics.interval import resampled
from oneflow_core.metrics.length import length_ratio, word_count
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.files import Pictures, chosen, read, shown
from workflows.evaluation.suites.loading import Loaded, Loader, item, notes_of, rules_of
from workflows.evaluation.suites.prompts import read_captions

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "coco-captions"
CIDER, ROUGE, BLEU, LENGTH = (f"coco/{name}" for name in ("cider", "rouge_l", "bleu4", "length_ratio"))
REFERENCE = "pycocoevalcap 1.2 (CIDEr-D, PTB tokens without Java: see the metric card)"


def judge(
    batch: Sequence[Item],
    outputs: Sequence[Output],
    *,
    config: EvaluateConfig | None = None,
    rules: Mapping[str, Any] | None = None,
    **_: Any,
) -> Judged:
    """Scores every caption; a failed item has an empty one, which scores 0 and counts."""
    held = rules or {}
    texts = [" ".join(output.text.split()) for output in outputs]
    tokens = _Tokens.of(batch, texts)
    each = tokens.table.scores()
    scores = [
        {CIDER: float(points), ROUGE: rouge_l(tokens.made[i.id], tokens.true[i.id])}
        for i, points in zip(batch, each, strict=True)
    ]
    context = (tokens, (config or EvaluateConfig()).resamples)
    return Judged(batch, outputs, scores, texts, held, notes_of(held, "captions"), context)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Captions and references by item, cut, and what CIDEr counts of them."""

    made: dict[str, list[str]]
    true: dict[str, list[list[str]]]
    table: CiderTable

    @classmethod
    def of(cls, batch: Sequence[Item], texts: Sequence[str]) -> _Tokens:
        made = {i.id: caption_tokens(text) for i, text in zip(batch, texts, strict=True)}
        true = {i.id: [caption_tokens(t) for t in json.loads(i.truth)] for i in batch}
        return cls(made, true, CiderTable(made, true))


def figures(judged: Judged) -> dict[str, Figure]:
    """The figures of all pictures; CIDEr holds for this set of references alone."""
    if not judged.items:
        return {}
    tokens, resamples = judged.context
    made, table = tokens.made, tokens.table
    counts = np.array([bleu_counts(made[name], tokens.true[name]) for name in made])

    def cider(weight: NDArray[np.float64]) -> float:
        return float(weight @ table.scores(weight) / weight.sum())

    def bleu(weight: NDArray[np.float64]) -> float:
        return bleu_of(weight @ counts)[3]

    parts = dict(zip(made, map(tuple, counts.tolist()), strict=True))

    controls, count = _shuffled(judged), len(made)
    sampled = {
        name: resampled(of, count, resamples=resamples, least=0)
        for name, of in ((CIDER, cider), (BLEU, bleu))
    }
    expected = [float(np.mean([word_count(t) for t in json.loads(i.truth)])) for i in judged.items]
    return {
        CIDER: Figure(sampled[CIDER], controls[CIDER], resamples=resamples),
        BLEU: Figure(sampled[BLEU], controls[BLEU], "higher", resamples, False, parts, _bleu4),
        ROUGE: Figure(judged.mean(ROUGE), controls[ROUGE]),
        LENGTH: Figure(length_ratio(list(judged.readings), expected), per_item=False),
    }


def _bleu4(parts: NDArray[np.float64]) -> float:
    return bleu_of(parts.sum(0))[3]


def _shuffled(judged: Judged) -> dict[str, dict[str, float]]:
    """The same captions held against other pictures."""
    if len(judged.items) < 2:
        return {name: {} for name in (CIDER, BLEU, ROUGE)}
    order = derangement(len(judged.items), np.random.default_rng(len(judged.items)))
    made = {i.id: judged.readings[place] for i, place in zip(judged.items, order, strict=True)}
    found = score_captions(made, {i.id: json.loads(i.truth) for i in judged.items})
    values = {CIDER: found.cider, BLEU: found.bleu[3], ROUGE: found.rouge_l}
    return {name: {"shuffled": value} for name, value in values.items()}


def _load(config: EvaluateConfig) -> Loaded:
    """One item a picture, to be described; truth is its captions as JSON."""
    file = read("captions", config.data.captions, SUITE)
    pictures = Pictures("images", config.data.images, SUITE)
    captions = read_captions(file, config.data.split)
    seen = shown(pictures, chosen(captions.references, config.limit, config.seed), config.data)
    truth = {name: json.dumps(captions.references[name], ensure_ascii=False) for name in seen.pictures}
    made = [item(config, SUITE, name, (one,), "text", truth[name]) for name, one in seen.pictures.items()]
    if not made:
        raise file.refused("none of its pictures can be read")
    return Loaded(
        made,
        rules_of(
            config,
            {"captions": file},
            {**captions.refused, **seen.refused},
            rule="CIDEr-D, BLEU-4 and ROUGE-L of the whole set",
            reference=REFERENCE,
            pictures={"count": len(made), "sha256": seen.sha256},
        ),
    )


_loader = Loader(_load)
items, rules = _loader.items, _loader.rules
