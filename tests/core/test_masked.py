"""Mask + FM: which tokens are masked and how they weigh, and how a text of masks is settled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import MaskedObjective, ObjectiveConfig, build_objective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import collate
from oneflow_core.sampling import MaskedSampler, Request, SamplerConfig, build_sampler
from oneflow_core.sampling.masked import MaskedState
from tests.core.networks import GRID, mixed_requests, random_model
from tests.core.words import TINY, WordTokenizer, image, sample, text

MASKED = replace(TINY, objective="masked", vocab_size=TINY.vocab_size + 1)
MASK, LENGTH = 40, 6
PLAIN = TaskMixture(concurrent=0.0, text_to_image=0.0, prompt_dropout=0.0)


def objective(**config: object) -> MaskedObjective:
    settings = {"kind": "masked", "mixture": PLAIN, "masked_length": LENGTH, "time_weight_cap": 1e9, **config}
    made = build_objective(ObjectiveConfig(**settings), MASKED, WordTokenizer())  # type: ignore[arg-type]
    assert isinstance(made, MaskedObjective)
    return made


def test_masks_stand_for_what_was_there_and_ends_fill_the_text() -> None:
    for seed in range(40):
        example = objective().corrupt(sample(image(), text([5, 6, 7])), np.random.default_rng(seed))
        tokens = example.layout.token_T[-LENGTH:]
        whole = np.array([5, 6, 7, 0, 0, 0])
        masked = tokens == MASK
        assert (tokens[~masked] == whole[~masked]).all()
        assert example.pair_token_K.tolist() == whole[masked].tolist()
        assert (
            example.layout.slot_S.tolist()
            == (np.flatnonzero(masked) + len(example.layout.token_T) - LENGTH).tolist()
        )
        assert example.text_targets == LENGTH
        assert not (example.layout.token_T[:-LENGTH] == MASK).any()


def test_the_share_of_masks_is_one_less_the_clock_and_weights_are_its_inverse() -> None:
    shares, weighed = [], []
    doc = sample(text(list(range(2, 32))))
    for seed in range(2000):
        example = objective(masked_length=30).corrupt(doc, np.random.default_rng(seed))
        shares.append(len(example.pair_token_K) / 30 - (1 - example.clock_C[0]))
        assert example.weight_C[0] == pytest.approx(1 / (1 - example.clock_C[0]))
        weighed.append(example.weight_C[0] * len(example.pair_token_K) / 30)
    assert np.mean(shares) == pytest.approx(0, abs=0.01)
    # Each token has the same expected weight, 1: the bound on the likelihood of LLaDA.
    assert np.mean(weighed) == pytest.approx(1, abs=0.05)


def test_longer_texts_are_cut_and_drawings_have_no_masks() -> None:
    example = objective().corrupt(sample(text(list(range(2, 20)))), np.random.default_rng(0))
    assert len(example.layout.token_T) == 1 + LENGTH
    drawing = objective(mixture=replace(PLAIN, text_to_image=1.0))
    example = drawing.corrupt(sample(image(), text([5, 6])), np.random.default_rng(0))
    assert len(example.pair_token_K) == 0 and example.flow_N.all()


def test_a_vocabulary_without_room_for_the_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no id for the mask; make it 41"):
        MaskedObjective(ObjectiveConfig(kind="masked"), replace(MASKED, vocab_size=40), WordTokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("remask", ["random", "confidence"])
@pytest.mark.parametrize("schedule", ["linear", "power:2"])
def test_masks_are_settled_as_the_schedule_says(remask: str, schedule: str) -> None:
    left: list[int] = []

    def observe(state: MaskedState) -> None:
        left.append(int(state.elements.slot_E.sum()))

    sampler = MaskedSampler(random_model(objective="masked", vocab_size=41), bos_id=0, image_id=1)
    config = SamplerConfig(steps=5, length=20, remask=remask, schedule=schedule)  # type: ignore[arg-type]
    (out,) = sampler.generate([Request(((4,),), "text", GRID, 0)], config, observe)
    power = 2 if schedule == "power:2" else 1
    assert left == [round(20 * (1 - (j / 5) ** power)) for j in range(1, 6)]
    assert out.trace.passes == 5
    assert not {0, 1, MASK} & set(out.trace.token)


def test_the_surest_are_settled_first() -> None:
    model = random_model(objective="masked", vocab_size=41)
    state = MaskedState([Request((), "text", GRID, 0)], SamplerConfig(steps=4, length=4), model.config, 0, 1)
    from oneflow_core.sampling.forward import build_batch

    logits = model(build_batch(state, torch.device("cpu")).inputs).logits_RV
    logits[:, [1, MASK]] = -torch.inf
    surest = int(logits.softmax(-1).amax(-1).argmax())
    settled: list[int] = []
    config = SamplerConfig(steps=4, length=4, temperature=0, remask="confidence")

    def observe(state: MaskedState) -> None:
        settled.append(
            int(np.flatnonzero(state.elements.token_E[1:] != MASK)[0]) if len(settled) == 0 else -1
        )

    MaskedSampler(model, bos_id=0, image_id=1).generate([Request((), "text", GRID, 0)], config, observe)
    assert settled[0] == surest


@pytest.mark.parametrize("prompt_attention", ["full", "prefix"])
@pytest.mark.parametrize("text_guidance", [0.0, 1.0])
def test_a_document_does_not_depend_on_its_batch_nor_on_the_cache(
    text_guidance: float, prompt_attention: str
) -> None:
    model = random_model(objective="masked", vocab_size=41, prompt_attention=prompt_attention)
    sampler = build_sampler(model, bos_id=0, image_id=1)
    config = SamplerConfig(steps=4, length=8, text_guidance=text_guidance)
    together = sampler.generate(mixed_requests(False), config)
    for request, expected in zip(mixed_requests(False), together, strict=True):
        for cached in (True, False):
            (alone,) = sampler.generate([request], replace(config, prefix_cache=cached))
            assert alone.trace == expected.trace
            for a, b in zip(alone.segments, expected.segments, strict=True):
                assert np.allclose(np.asarray(a), np.asarray(b), atol=1e-3)


def test_images_cannot_be_placed() -> None:
    sampler = build_sampler(random_model(objective="masked", vocab_size=41), bos_id=0, image_id=1)
    with pytest.raises(ValueError, match="cannot choose where images stand"):
        sampler.generate([Request((), "document", GRID, 0)])


def test_it_learns_a_caption_and_an_image_by_heart() -> None:
    torch.manual_seed(0)
    model = OneFlowModel(MASKED)
    made = objective(mixture=replace(PLAIN, text_to_image=0.5), time_weight_cap=20.0)
    doc = sample(image(), text([5, 6, 7, 8]), seed=3)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(150):
        pack = collate([made.corrupt(doc, np.random.default_rng(100 * step + i)) for i in range(8)])
        loss = made.loss(model, pack, made.normalisers(pack)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(p.grad is not None for p in model.parameters())
    config = SamplerConfig(steps=12, length=LENGTH, image_guidance=1.0)
    features = doc.features[0].astype(np.float32)
    asked = [Request((features,), "text", GRID, 0), Request(((5, 6, 7, 8),), "image", GRID, 0)]
    caption, drawing = made.sampler(model.eval()).generate(asked, config)
    assert caption.segments == ((5, 6, 7, 8),)
    assert np.abs(np.asarray(drawing.segments[0]) - doc.latents[0].astype(np.float32)).mean() < 0.3
