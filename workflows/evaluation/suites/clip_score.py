"""CLIP score of pictures of prompts, by a CLIP or a SigLIP given by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from oneflow_core.encoders import DualEncoder, EncoderError
from oneflow_core.metrics.clip_score import HESSEL, PERCENT, ClipScores, ScoreRule, clip_score
from workflows.errors import UsageError
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.drawings import drawing_items, drawings, lost, shuffled_place
from workflows.evaluation.suites.files import chosen, read
from workflows.evaluation.suites.loading import Loaded, Loader, notes_of, rules_of
from workflows.evaluation.suites.prompts import read_prompts

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "clip-score"
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
    held = rules or {}
    made = drawings(outputs)
    with_picture = [place for place, one in enumerate(made) if one is not None]
    other = shuffled_place(len(with_picture))
    encoder, rule = _encoder(config.clip.path or "", config.clip.device), RULES[config.clip.rule]
    name = f"clip-score/{encoder.kind}_score_{config.clip.rule}"
    points, shuffled = [0.0] * len(made), [0.0] * len(made)
    cut = 0
    if with_picture:
        seen = [image for image in made if image is not None]
        texts = [str(batch[place].prompt[0]) for place in with_picture]
        right = clip_score(encoder, seen, texts, rule=rule)
        wrong: ClipScores = clip_score(encoder, seen, [texts[o] for o in other], rule=rule)
        cut = right.cut
        for place, score, control in zip(with_picture, right.each, wrong.each, strict=True):
            points[place], shuffled[place] = score, control
    notes = notes_of(held, "prompts")
    if cut:
        notes.append(f"{cut} of {len(batch)} prompts are longer than the encoder reads and were cut")
    notes += lost(outputs, made, "score 0")
    scores = [{name: score} for score in points]
    return Judged(batch, outputs, scores, shuffled, held, notes, name)


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
