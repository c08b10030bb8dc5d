"""The model that is there at once: what a newcomer gets who names no model, judged by the checker."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from oneflow_core.model_source import ASSETS
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from oneflow_core.shapes import examine, render, sample_in_split
from oneflow_core.shapes.grammar import describe, mention_of, parse
from oneflow_core.shapes.scores import score_caption, score_reading


@pytest.fixture(scope="module")
def pipeline() -> OneFlowPipeline:
    return OneFlowPipeline.from_pretrained()


def test_it_is_small_and_carries_its_report_and_recipe() -> None:
    files = [p for p in ASSETS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 16_000_000
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md"}
    report = json.loads((ASSETS / "report.json").read_text())
    recipe = json.loads((ASSETS / "recipe.json").read_text())
    assert report["metrics"]["t2i/single/colour"] > 0.9
    assert recipe["train"]["budget"]["max_minutes"] > 12


def test_it_draws_what_it_is_asked_for(pipeline: OneFlowPipeline) -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_in_split(rng, "heldout_triple", 1) for _ in range(20)]
    prompts = [describe([mention_of(o) for o in scene], rng) for scene in scenes]
    made = pipeline([Prompt((p,), "image") for p in prompts], seeds=range(20))
    scores = [
        score_reading(parse(p) or [], examine(np.asarray(d.images[0])))
        for p, d in zip(prompts, made, strict=True)
    ]
    assert np.mean([float(s.colour or 0) for s in scores]) >= 0.8
    assert np.mean([float(s.shape or 0) for s in scores]) >= 0.6


def test_it_says_what_it_sees(pipeline: OneFlowPipeline) -> None:
    rng = np.random.default_rng(6)
    scenes = [sample_in_split(rng, "heldout_triple", 1) for _ in range(20)]
    said = pipeline([Prompt((Image.fromarray(render(s)),), "text") for s in scenes], seeds=range(20))
    right = [score_caption(d.text, s).exact for d, s in zip(said, scenes, strict=True)]
    assert np.mean(right) >= 0.7
