"""The recipes: presets that belong together, and each objective on the documents of both stages."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_core.packing import collate
from tests.workflows.training.corpus import instruction, sample, tiny_config, write_corpus
from workflows.config import CONFIG_DIR, load, presets
from workflows.training.config import CorpusSettings, TrainConfig
from workflows.training.loop import Trainer
from workflows.training.materials import gather
from workflows.training.parallel import Worker
from workflows.training.planning.plan import plan

RECIPES = sorted(set(presets("train")) - {"shapes-nano"})
LARGE = [name for name in RECIPES if not name.endswith("nano")]


def recipe(name: str) -> TrainConfig:
    config: TrainConfig = load("train", name)
    return config


def test_every_value_of_the_large_recipes_says_whose_it_is() -> None:
    sections = ("model", "objective", "data", "optimiser", "budget", "ema")
    for name in LARGE:
        section = ""
        for line in (CONFIG_DIR / "train" / f"{name}.yaml").read_text().splitlines():
            section = line.split(":")[0] if line[:1].isalpha() else section
            value = line.startswith(" ") and re.search(r"^\s*\w+: +[^#\s]", line)
            if section in sections and value:
                assert re.search("# (paper|ours|as the start)", line), (name, line)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_recipe_fits_its_gpus_with_room_and_has_the_papers_batch(name: str) -> None:
    config = recipe(name)
    nowhere = config.data.model_copy(update={"corpora": [CorpusSettings(url="/nowhere")]})
    planned = plan(config.model_copy(update={"data": nowhere}), "H100")
    assert planned.memory.peak < 0.85 * planned.gpu.memory
    assert config.compute.workers // config.compute.replicas == 8
    if name.startswith("pretrain"):
        assert planned.packs_per_step * config.data.tokens == 4096 * 512


def test_a_second_stage_has_the_dimensions_of_its_first() -> None:
    registered = {recipe(name).registry.name: recipe(name) for name in RECIPES}
    assert len(registered) == len(RECIPES)
    later = [recipe(name) for name in RECIPES if recipe(name).model.start]
    assert {config.name for config in later} == {
        "image-finetune",
        "image-finetune-nano",
        "instruct-8b",
        "instruct-nano",
    }
    for config in later:
        parent = registered[str(config.model.start).removeprefix("models:/").partition("@")[0]]
        assert config.model.preset == parent.model.preset and config.model.dims == parent.model.dims
        assert config.data.tokenizer == parent.data.tokenizer
        for part in ("codec", "codec_subfolder", "encoder"):
            assert getattr(config.registry, part) == getattr(parent.registry, part)


def test_sequential_pretraining_differs_from_mixed_in_nothing_but_the_concurrent_share() -> None:
    mixed, sequential = (recipe(name).model_dump() for name in ("pretrain-1b", "pretrain-sequential"))
    assert mixed["objective"]["mixture"].pop("concurrent") == 0.2
    assert sequential["objective"]["mixture"].pop("concurrent") == 0.0
    for tree in (mixed, sequential):
        tree["name"] = tree["registry"]["name"] = ""
    assert mixed == sequential


@pytest.mark.parametrize(
    ("first", "second"), [("pretrain-1b", "image-finetune"), ("pretrain-nano", "image-finetune-nano")]
)
def test_the_fine_tunes_image_times_are_shifted_as_sd3_shifts_them(first: str, second: str) -> None:
    """SD3 (arXiv 2403.03206, eq. 23): noise s becomes a s / (1 + (a - 1) s), a the root of the ratio of pixels."""
    before, after = recipe(first), recipe(second)
    ratio = after.registry.image_size / before.registry.image_size
    assert ratio == 2
    z = np.random.default_rng(0).standard_normal(100)
    mean, std = before.objective.image_time_mean, before.objective.image_time_std
    noise = 1 - 1 / (1 + np.exp(-(mean + std * z)))
    shifted = 1 - ratio * noise / (1 + (ratio - 1) * noise)
    drawn = 1 / (1 + np.exp(-(after.objective.image_time_mean + after.objective.image_time_std * z)))
    np.testing.assert_allclose(drawn, shifted, atol=1e-3)
    assert after.objective.image_time_mean == pytest.approx(mean - math.log(2), abs=4e-3)


@pytest.mark.parametrize("kind", ["oneflow", "transfusion", "masked"])
def test_each_objective_trains_on_the_documents_of_both_stages(
    alone: Worker, tmp_path: Path, kind: str
) -> None:
    for stage, make, preset in (
        ("pairs", sample, "pretrain-nano"),
        ("instruct", instruction, "instruct-nano"),
    ):
        write_corpus(tmp_path / stage, make=make)
        objective: dict[str, Any] = recipe(preset).objective.model_dump()
        changes = {
            "objective": {**objective, "kind": kind, "masked_length": 20},
            "budget__steps": 4,
            "data__holdout": 0.2,
        }
        config = tiny_config(tmp_path / stage, tmp_path / "runs", **changes)
        outcome = Trainer(config, gather(config), alone, str(tmp_path / "run" / stage)).run()
        assert outcome.step == 4 and math.isfinite(outcome.metrics["heldout/loss"])


def test_a_question_has_loss_on_its_answer_alone(tmp_path: Path) -> None:
    write_corpus(tmp_path / "instruct", make=instruction)
    materials = gather(tiny_config(tmp_path / "instruct", tmp_path))
    for number in (0, 1, 3):
        question = instruction(number, 4, 8)
        [answer] = [s.text for s in question.document.texts if s.role == "target"]
        length = len(materials.tokenizer.encode(answer))
        for seed in range(20):
            pack = collate([materials.objective.corrupt(question, np.random.default_rng(seed))])
            share = materials.objective.normalisers(pack)
            assert (share["text"], share["image"]) == (length, 0)
            assert 0 <= pack.count_S.sum() <= length
