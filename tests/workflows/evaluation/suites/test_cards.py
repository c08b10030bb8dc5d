"""Every figure has its metric card, every suite its preset and its line in the docs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from oneflow_core.encoders.features import picture_features
from workflows.config import load, presets
from workflows.evaluation.run import SUITES
from workflows.evaluation.suites import coco_captions, dpg_bench, geneval, vqa
from workflows.evaluation.suites.clip_score import RULES
from workflows.evaluation.suites.config import SuiteName
from workflows.evaluation.suites.shapes_prompts import TAGS

DOCS = Path(__file__).parents[4] / "docs"


def test_every_figure_has_a_card() -> None:
    cards = (DOCS / "metric-cards.md").read_text(encoding="utf-8")
    names = [coco_captions.CIDER, coco_captions.BLEU, coco_captions.ROUGE, coco_captions.LENGTH]
    names += [f"dpg/{name}" for name in (dpg_bench.DPG, dpg_bench.DSG, dpg_bench.PLAIN)]
    names += [f"geneval/{name}" for name in (geneval.OVERALL, geneval.IMAGES, geneval.PROMPTS)]
    names += [*TAGS, *vqa.NAMES.values(), *(f"{name}/..." for name in list(geneval.NAMES.values())[1:])]
    names += [f"clip-score/clip_score_{rule}" for rule in RULES]
    figures = (
        "fid",
        "fid_clean",
        "fd_inception",
        "fd_dinov2",
        "fd_siglip",
        picture_features("embedded").figure,
    )
    names += [f"coco-fid/{figure}" for figure in figures]
    assert [name for name in names if f"`{name}`" not in cards] == []
    assert [suite for suite in SUITES if f"## {suite.removesuffix('-shapes')}" not in cards] == []


def test_every_suite_has_a_preset_and_is_documented() -> None:
    assert set(SUITES) == set(get_args(SuiteName)) <= set(presets("evaluate"))
    docs = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    for name in presets("evaluate"):
        assert load("evaluate", name).suite in SUITES and f"`{name}`" in docs or name == "shapes"
