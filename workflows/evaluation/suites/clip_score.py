"""CLIP score of pictures of prompts, by a CLIP or a SigLIP given by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from oneflow_core.encoders import DualEncoder, EncoderError
from oneflow_core.metrics.clip_score import HESSEL, PERCENT, ScoreRule, clip_score
from workflows.errors import UsageError
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.drawings import Drawings, drawing_items, shuffled_place
from workflows.evaluation.suites.files import chosen, read
from workflows.evaluation.suites.loading import Loaded, Loader, notes_of, rules_of
from workflows.evaluation.suites.prompts import read_prompts

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "clip-score"
AT_ONCE = 64
"""Pictures in memory at a time."""
RULES: dict[str, ScoreRule] = {"percent": PERCENT, "hessel": HESSEL}


def items(config: EvaluateConfig) -> list[Item]:
    """The prompts, `images_per_prompt` times each."""
    return _loader.items(config)


def rules(config: EvaluateConfig, served: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What decides the figures; UsageError where the prompts or the encoder are missing."""
    return _loader.rules(config)


def judge(
    batch: Sequence[Item],
    outputs: Sequence[Output],
    *,
    config: EvaluateConfig | None = None,
    rules: Mapping[str, Any] | None = None,
    **_: Any,
) -> Judged:
    """Scores every picture against its prompt; a failed item scores 0, the least there is."""
    assert config is not None
    made, held, texts = Drawings(outputs), rules or {}, [str(item.prompt[0]) for item in batch]
    encoder, rule = _encoder(config.clip.path or "", config.clip.device), RULES[config.clip.rule]
    name = f"clip-score/{encoder.kind}_score_{config.clip.rule}"
    other = [texts[place] for place in shuffled_place(len(texts))]
    points, shuffled, cut = np.zeros(len(made)), np.zeros(len(made)), 0
    for start in range(0, len(made), AT_ONCE):
        held_here = {start + n: one for n, one in enumerate(made[start : start + AT_ONCE]) if one is not None}
        if held_here:
            places, seen = list(held_here), list(held_here.values())
            right = clip_score(encoder, seen, [texts[n] for n in places], rule=rule)
            points[places], cut = right.each, cut + right.cut
            shuffled[places] = clip_score(encoder, seen, [other[n] for n in places], rule=rule).each
    notes = notes_of(held, "prompts")
    if cut:
        notes.append(f"{cut} of {len(batch)} prompts are longer than the encoder reads and were cut")
    notes += made.lost("score 0")
    return Judged(
        batch, outputs, [{name: float(score)} for score in points], list(shuffled), held, notes, name
    )


def figures(judged: Judged) -> dict[str, Figure]:
    """The mean score; `shuffled` are the same pictures against other prompts."""
    if not judged.items:
        return {}
    controls = {"shuffled": float(np.mean(judged.readings))} if len(judged.items) > 1 else {}
    return {judged.context: Figure(judged.mean(judged.context), controls)}


@lru_cache(1)
def _encoder(path: str, device: str) -> DualEncoder:
    if not path:
        raise UsageError(
            f"suite {SUITE}",
            "clip.path is not set",
            "name a directory or hub repository of a CLIP or a SigLIP, e.g. openai/clip-vit-base-patch32",
        )
    try:
        return DualEncoder.from_pretrained(path, device=device)
    except EncoderError as error:
        raise UsageError("clip.path", str(error), "name another encoder") from error


def _load(config: EvaluateConfig) -> Loaded:
    file = read("prompts", config.data.prompts, SUITE)
    prompts, refused = read_prompts(file)
    encoder, rule = _encoder(config.clip.path or "", config.clip.device), RULES[config.clip.rule]
    taken = {name: (prompts[name], "") for name in chosen(prompts, config.limit, config.seed)}
    return Loaded(
        drawing_items(config, SUITE, taken),
        rules_of(
            config,
            {"prompts": file},
            refused,
            rule={
                "name": config.clip.rule,
                "weight": rule.weight,
                "prefix": rule.prefix,
                "clipped": "pair by pair",
            },
            reference="Hessel et al. 2021; torchmetrics 1.9 clips the mean instead of each pair",
            encoder=encoder.id,
            images_per_prompt=config.images_per_prompt,
        ),
    )


_loader = Loader(_load)
