"""The pipeline with a tiny model of real parts: shapes of what comes out, independence, and the directory."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from oneflow_core.model_directory import ModelDirectoryError, ModelParts
from oneflow_core.model_source import ModelSourceError
from oneflow_core.pipeline import GeneratedDocument, OneFlowPipeline, Prompt
from tests.tiny import tiny_parts

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8))
PROMPTS = [
    Prompt(("a red circle",), "image"),
    Prompt((PICTURE,), "text"),
    Prompt((PICTURE, "what colour is it?"), "text"),
    Prompt(("First there is a circle.",), "document"),
    Prompt((), "document"),
    Prompt((PICTURE, "and", PICTURE), "image"),
]
SEEDS = [11, 12, 13, 14, 15, 16]


@pytest.fixture(scope="module")
def pipeline() -> OneFlowPipeline:
    return OneFlowPipeline(tiny_parts())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OneFlowPipeline(tiny_parts()).save_pretrained(tmp_path_factory.mktemp("model") / "tiny")


def same(a: Sequence[GeneratedDocument], b: Sequence[GeneratedDocument], tolerance: int = 0) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.trace == other.trace
        assert one.text == other.text
        assert len(one.images) == len(other.images)
        for left, right in zip(one.images, other.images, strict=True):
            assert np.abs(np.asarray(left, int) - np.asarray(right, int)).max() <= tolerance


def test_each_target_gives_what_was_asked_for(pipeline: OneFlowPipeline) -> None:
    documents = pipeline(PROMPTS, seeds=SEEDS)
    for prompt, document in zip(PROMPTS, documents, strict=True):
        if prompt.target == "image":
            assert [s.size for s in document.images] == [(64, 64)]
            assert document.text == ""
        if prompt.target == "text":
            assert document.images == ()
        pieces = "".join(i.text for i in document.trace.insertions)
        assert pieces == document.text
        assert len(document.trace.images) == len(document.images)
        assert all(not isinstance(document.segments[b.segment], str) for b in document.trace.images)
        assert document.trace.passes >= (6 if document.images else 1)
    assert any(d.text for d in documents)


def test_a_document_does_not_depend_on_its_neighbours(pipeline: OneFlowPipeline) -> None:
    together = pipeline(PROMPTS, seeds=SEEDS)
    alone = [pipeline([p], seeds=[s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    same(together, alone, tolerance=1)
    same(together[::-1], pipeline(PROMPTS[::-1], seeds=SEEDS[::-1]), tolerance=1)


def test_seeds_matter(pipeline: OneFlowPipeline) -> None:
    a, b = pipeline([PROMPTS[0]] * 2, seeds=[1, 2])
    assert np.any(np.asarray(a.images[0]) != np.asarray(b.images[0]))


def test_options_are_one_for_all_or_one_each(pipeline: OneFlowPipeline) -> None:
    few, many = pipeline([PROMPTS[0]] * 2, steps=[3, 9])
    assert (few.trace.passes, many.trace.passes) == (3, 9)
    same([few], pipeline([PROMPTS[0]], steps=3), tolerance=1)
    with pytest.raises(ValueError, match="2 options for 1 prompts"):
        pipeline([PROMPTS[0]], steps=[3, 9])
    with pytest.raises(ValueError, match="steps"):
        pipeline([PROMPTS[0]], steps=0)


def test_a_model_may_be_told_to_make_no_image(pipeline: OneFlowPipeline) -> None:
    documents = pipeline([Prompt((), "document")] * 4, seeds=[1, 2, 3, 4], max_images=0)
    assert all(d.images == () for d in documents)


def test_nothing_asked_nothing_made(pipeline: OneFlowPipeline) -> None:
    assert pipeline([]) == []


def test_a_saved_model_makes_the_same(pipeline: OneFlowPipeline, directory: Path) -> None:
    again = OneFlowPipeline.from_pretrained(directory)
    same(pipeline(PROMPTS, seeds=SEEDS), again(PROMPTS, seeds=SEEDS))
    assert again.identity["run_id"] == "run-1"
    assert len(again.identity["version"]) == 12
    assert again.defaults.steps == 6


def test_the_directory_says_what_it_holds(directory: Path) -> None:
    index = json.loads((directory / "model_index.json").read_text())
    assert index["_class_name"] == "OneFlowPipeline"
    assert index["latent_codec_id"] == tiny_parts().codec.id
    card = (directory / "README.md").read_text()
    assert index["model_sha256"] in card and "run-1" in card and "64 x 64" in card
    suffixes = {p.suffix for p in directory.rglob("*") if p.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md"}


def test_a_directory_is_not_written_over(pipeline: OneFlowPipeline, directory: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="holds a model already"):
        pipeline.save_pretrained(directory)


def _other_codec(root: Path) -> None:
    weights = root / "latent_codec" / "diffusion_pytorch_model.safetensors"
    save_file({k: v + 0.25 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})


def _cut_weights(root: Path) -> None:
    weights = root / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _other_weights(root: Path) -> None:
    weights = root / "model" / "model.safetensors"
    save_file({k: v + 0.25 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})


def _other_config(root: Path) -> None:
    path = root / "model" / "config.json"
    path.write_text(path.read_text().replace('"ffn": 64', '"ffn": 128'))


def _unknown_config(root: Path) -> None:
    path = root / "model" / "config.json"
    path.write_text(path.read_text().replace('"ffn"', '"fnn"'))


def _newer(root: Path) -> None:
    path = root / "model_index.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda r: (r / "model_index.json").unlink(), "there is no model here"),
        (lambda r: (r / "model_index.json").write_text("{"), "not JSON"),
        (_newer, "schema 2 is not 1"),
        (lambda r: shutil.rmtree(r / "tokenizer"), "the part tokenizer/ is missing"),
        (lambda r: (r / "tokenizer" / "tokenizer.json").write_text("x"), "no tokenizer at"),
        (_other_codec, "the model was trained with"),
        (lambda r: (r / "latent_codec" / "config.json").unlink(), "latent_codec"),
        (lambda r: shutil.rmtree(r / "understanding_encoder"), "understanding_encoder/ is missing"),
        (lambda r: (r / "model" / "model.safetensors").unlink(), "model.safetensors"),
        (_cut_weights, "model.safetensors"),
        (_other_weights, "not the bytes"),
        (_other_config, "model.safetensors"),
        (_unknown_config, "unknown field 'fnn'"),
    ],
)
def test_a_spoilt_directory_is_refused(
    harm: Callable[[Path], object], says: str, directory: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(directory, tmp_path / "spoilt"))
    harm(root)
    with pytest.raises(ModelDirectoryError) as caught:
        OneFlowPipeline.from_pretrained(root)
    assert says in str(caught.value)


def test_parts_must_fit_together() -> None:
    parts = tiny_parts()
    for wrong in ({"image_size": 60}, {"image_size": 0}):
        with pytest.raises(ModelDirectoryError, match="does not fit the network"):
            dataclasses.replace(parts, **wrong)
    config = dataclasses.replace(parts.model.config, feature_dim=7)
    with pytest.raises(ModelDirectoryError, match="understanding encoder"):
        ModelParts(type(parts.model)(config), parts.tokenizer, parts.codec, parts.encoder, 64)


def test_nothing_that_is_pickled_is_read(directory: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(directory, tmp_path / "pickled"))
    weights = root / "model" / "model.safetensors"
    torch.save(load_file(weights), root / "model" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelDirectoryError):
        OneFlowPipeline.from_pretrained(root)


def test_a_name_that_is_no_model() -> None:
    with pytest.raises(ModelSourceError):
        OneFlowPipeline.from_pretrained("nowhere/at/all")
