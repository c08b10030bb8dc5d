"""CLIP score of pictures of prompts, by a CLIP or a SigLIP given by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oneflow_core.metrics.clip_score import HESSEL, PERCENT, ScoreRule, clip_score
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.drawings import Drawings, drawing_items, shuffled_place
from workflows.evaluation.suites.encoders import dual_encoder
from workflows.evaluation.suites.files import chosen, read
from workflows.evaluation.suites.loading import Loaded, Loader, notes_of, rules_of
from workflows.evaluation.suites.prompts import read_prompts

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "clip-score"
AT_ONCE = 64
"""Pictures in memory at a time."""
RULES: dict[str, ScoreRule] = {"percent": PERCENT, "hessel": HESSEL}


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
    encoder, rule = dual_encoder("clip.path", config.clip.path, config.clip.device), RULES[config.clip.rule]
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


def _load(config: EvaluateConfig) -> Loaded:
    """The prompts, `images_per_prompt` times each."""
    file = read("prompts", config.data.prompts, SUITE)
    prompts, refused = read_prompts(file)
    encoder, rule = dual_encoder("clip.path", config.clip.path, config.clip.device), RULES[config.clip.rule]
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
items, rules = _loader.items, _loader.rules
