"""A model that is saved and loaded is the same to the last bit, and saved again the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oneflow_core.model import OneFlowModel
from oneflow_core.model_directory import ModelParts, load, save
from oneflow_core.packing import collate
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.core.corruptions import corrupt, objective
from tests.core.words import image, sample, text
from tests.tiny import tiny_parts

ODD = (-0.0, 1e-45, 3.4028234663852886e38, -1.1754943508222875e-38, float("inf"), float("nan"))
"""Values that arithmetic on the way would not leave as they are."""


def bits(x: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return x.detach().contiguous().cpu().view(torch.uint8)


def networks(parts: ModelParts) -> Iterator[tuple[str, nn.Module]]:
    yield "model", parts.model
    yield "latent_codec", parts.codec.vae
    yield "understanding_encoder", parts.encoder.vision


def digests(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def fresh(**dims: bool | str) -> ModelParts:
    """Tiny parts with a network of their own, all of whose parameters are random."""
    parts = tiny_parts()
    torch.manual_seed(7)
    model = OneFlowModel(replace(parts.model.config, **dims)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return replace(parts, model=model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_of_every_part_comes_back_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    parts = fresh(text_time=True)
    parts.model.to(dtype)
    with torch.no_grad():
        parts.model.embedding.weight[0, : len(ODD)] = torch.tensor(ODD).to(dtype)
    loaded, version = load(save(parts, tmp_path / "a"), device="cpu", dtype=dtype)
    for (name, ours), (_, theirs) in zip(networks(parts), networks(loaded), strict=True):
        before, after = ours.state_dict(), theirs.state_dict()
        assert list(before) == list(after) and len(before) > 5, name
        for key in before:
            assert before[key].dtype == after[key].dtype, key
            assert torch.equal(bits(before[key]), bits(after[key])), f"{name} {key}"
    assert loaded.tokenizer.digest == parts.tokenizer.digest
    assert (loaded.image_size, loaded.sampler, loaded.notes) == (
        parts.image_size,
        parts.sampler,
        parts.notes,
    )
    assert len(version) == 12


@pytest.mark.parametrize("counts", ["gated", "plain"])
def test_saved_again_it_is_the_same_bytes(counts: str, tmp_path: Path) -> None:
    parts = fresh(counts=counts)
    first = save(parts, tmp_path / "a")
    loaded, version = load(first, device="cpu", dtype=torch.float32)
    second = save(loaded, tmp_path / "b")
    assert digests(first) == digests(second)
    assert load(second, device="cpu", dtype=torch.float32)[1] == version
    with torch.no_grad():
        parts.model.image_head.project.bias[0] += 1e-6
    assert digests(save(parts, tmp_path / "c")) != digests(first)


@pytest.mark.parametrize("text_time", [False, True])
def test_outputs_and_losses_are_equal_to_the_bit(text_time: bool, tmp_path: Path) -> None:
    parts = fresh(text_time=text_time)
    loaded, _ = load(save(parts, tmp_path / "a"), device="cpu", dtype=torch.float32)
    made, rng = objective(parts.model.config), np.random.default_rng(0)
    latents = rng.standard_normal((2, parts.codec.channels, 4, 4)).astype(np.float16)
    story = sample(text([5, 6]), image(), text([7]), image())
    examples = [corrupt(made, replace(story, latents=tuple(latents)), seed) for seed in range(8)]
    assert any(len(e.noisy_ND) for e in examples) and any(len(e.pair_token_K) for e in examples)
    inputs = collate(examples).inputs
    with torch.no_grad():
        a, b = parts.model(inputs), loaded.model(inputs)
    for name in ("pi_logit_S", "rate_S", "nll_K", "image_ND"):
        assert torch.equal(bits(getattr(a, name)), bits(getattr(b, name))), name


def test_what_it_makes_is_equal_to_the_bit(tmp_path: Path) -> None:
    ours = OneFlowPipeline(fresh())
    theirs = OneFlowPipeline.from_pretrained(ours.save_pretrained(tmp_path / "a"))
    prompts = [Prompt(("a red circle",), "image"), Prompt((), "document"), Prompt(("and",), "text")]
    for a, b in zip(ours(prompts, seeds=[1, 2, 3]), theirs(prompts, seeds=[1, 2, 3]), strict=True):
        assert a.trace == b.trace and a.text == b.text
        assert [i.tobytes() for i in a.images] == [i.tobytes() for i in b.images]
