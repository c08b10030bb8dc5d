"""METHOD section 9 over random documents: mixtures of texts and images, given, asked for, or left to the task."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.data.shard import Sample
from oneflow_core.document import ImageSegment, TextSegment
from oneflow_core.flows.image import euler_step, patchify, velocity
from oneflow_core.flows.schedule import build_schedule
from oneflow_core.model import ModelOutputs
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, collate
from tests.core.corruptions import DOCUMENTS, MIXTURES, corrupt, elements_of, objective
from tests.core.words import TINY, WordTokenizer, image, sample, text

SEEDS = st.integers(0, 10_000)
MANY = settings(deadline=None, max_examples=150)


@dataclass
class Clean:
    """One clean element: its token, whether it is given, and its image's number in the document."""

    token: int
    prompt: bool
    image: int = -1


def clean_elements(document: Sample, mixture: TaskMixture) -> list[Clean]:
    """What the task is, told once more from METHOD 3.1 and the words of `TaskMixture`."""
    segments, numbers = document.document.segments, iter(range(6))
    parts = [(s, s.role == "prompt", next(numbers) if isinstance(s, ImageSegment) else -1) for s in segments]
    kind = document.document.kind
    if kind == "pair":
        words, picture = sorted(parts, key=lambda p: p[2])
        parts = [words, picture] if mixture.concurrent or mixture.text_to_image else [picture, words]
        if not mixture.concurrent:
            parts[0] = (parts[0][0], True, parts[0][2])
    elif kind == "interleaved" and mixture.story_prompt and isinstance(parts[0][0], TextSegment):
        parts[0] = (parts[0][0], True, -1)
    if mixture.prompt_dropout and len({prompt for _, prompt, _ in parts}) == 2:
        parts = [p for p in parts if not p[1]]
    elements = [Clean(0, True)]
    for segment, prompt, number in parts:
        ids = WordTokenizer().encode(segment.text) if isinstance(segment, TextSegment) else [1]
        elements += [Clean(token, prompt, number) for token in ids]
    return elements


def kept_elements(example: Example, clean: list[Clean]) -> list[int]:
    """Which clean elements are left, once every bag is put back in order behind its slot."""
    _, tokens, bags = elements_of(example)
    kept, restored = [], []
    for token, bag in zip(tokens, bags, strict=True):
        kept.append(len(restored))
        restored += [token, *bag]
    assert restored == [c.token for c in clean]
    return kept


@given(DOCUMENTS, MIXTURES, SEEDS)
@MANY
def test_bags_are_one_a_slot_hold_what_is_deleted_and_restore_the_document(
    document: Sample, mixture: TaskMixture, seed: int
) -> None:
    example = corrupt(objective(mixture=mixture), document, seed)
    clean = clean_elements(document, mixture)
    kept = kept_elements(example, clean)
    bags = np.bincount(example.pair_slot_K, minlength=len(example.layout.slot_S))
    assert example.count_S.tolist() == bags.tolist()
    assert example.count_S.sum() == len(clean) - len(kept)
    assert example.text_targets == sum(not c.prompt and c.image < 0 for c in clean)
    if example.clock_C[0] >= 1:
        assert len(kept) == len(clean)


@given(DOCUMENTS, MIXTURES, SEEDS)
@MANY
def test_prompts_are_untouched_and_only_their_last_element_owns_a_slot(
    document: Sample, mixture: TaskMixture, seed: int
) -> None:
    """And no slot at all where no text is asked for."""
    example = corrupt(objective(mixture=mixture), document, seed)
    clean, layout = clean_elements(document, mixture), example.layout
    kept, (places, _, _) = kept_elements(example, clean), elements_of(example)
    assert {i for i, c in enumerate(clean) if c.prompt} <= set(kept)
    assert [bool(layout.prompt_T[p]) for p in places] == [clean[i].prompt for i in kept]
    shown = [document.features[clean[i].image] for i in kept if clean[i].prompt and clean[i].image >= 0]
    assert np.array_equal(example.feature_MD, np.concatenate([np.zeros((0, 8)), *shown]))
    writes = document.document.kind == "interleaved" or any(not c.prompt and c.image < 0 for c in clean)
    before_target = [not c.prompt for c in clean[1:]] + [False]
    owners = [i for i in kept if writes and (before_target[i] or not clean[i].prompt)]
    assert [kept[places.index(p)] for p in layout.slot_S.tolist()] == owners


@given(DOCUMENTS, MIXTURES, SEEDS)
@MANY
def test_each_image_is_its_own_on_the_path_and_not_ahead_of_the_text(
    document: Sample, mixture: TaskMixture, seed: int
) -> None:
    example = corrupt(objective(mixture=mixture), document, seed)
    clean = clean_elements(document, mixture)
    shown = [clean[i] for i in kept_elements(example, clean) if clean[i].image >= 0 and not clean[i].prompt]
    latents = [patchify(document.latents[c.image].astype(np.float32), 2) for c in shown]
    assert np.array_equal(example.clean_ND, np.concatenate([np.zeros((0, 16)), *latents]))
    t = example.time_N[:, None].astype(np.float64)
    assert np.allclose(example.noisy_ND, t * example.clean_ND + (1 - t) * example.noise_ND, atol=1e-5)
    assert np.array_equal(example.flow_N, example.time_N < 1)
    assert ((example.time_N >= 0) & (example.time_N <= 1)).all()
    if document.document.kind == "interleaved":
        assert (example.time_N <= np.float32(min(1.0, example.clock_C[0]))).all()


@pytest.mark.parametrize("name", ["linear", "cosine", "power:3"])
@pytest.mark.parametrize("images", [0, 2])
def test_each_element_is_there_with_the_chance_kappa_of_the_clock(name: str, images: int) -> None:
    """E[kept | t] = kappa(t) N, and the binomial's variance: for texts, and for all elements of a story."""
    made, kappa = objective(schedule=name), build_schedule(name).kappa
    document = sample(text(list(range(2, 14))), *[image()] * images)
    scores, n = [], 12 + images
    for seed in range(1500):
        example = corrupt(made, document, seed)
        p = float(kappa(np.array(min(1.0, example.clock_C[0]))))
        if 0.05 < p < 0.95:
            scores.append((n - example.count_S.sum() - p * n) / (n * p * (1 - p)) ** 0.5)
    assert np.mean(scores) == pytest.approx(0, abs=4 / len(scores) ** 0.5)
    assert np.var(scores) == pytest.approx(1, abs=6 / len(scores) ** 0.5)


@given(DOCUMENTS, st.sampled_from(["clean", "velocity"]), st.sampled_from(["clean", "velocity"]), SEEDS)
@settings(deadline=None, max_examples=60)
def test_an_oracle_has_no_image_loss_and_one_step_lands_on_the_data(
    document: Sample, prediction: str, space: str, seed: int
) -> None:
    made = objective(replace(TINY, prediction=prediction, clean_eps=1e-6), image_loss=space)
    pack = collate([corrupt(made, document, seed)])
    answer = pack.clean_ND if prediction == "clean" else pack.clean_ND - pack.noise_ND
    slots, pairs = torch.zeros(len(pack.count_S)), torch.zeros(len(pack.clock_K))
    said = ModelOutputs(slots, slots + 1, None, pairs, answer)
    assert float(made.score(said, pack, made.normalisers(pack)).parts["image"]) == 0
    inputs = pack.inputs
    v_ND = velocity(answer, inputs.noisy_ND, inputs.time_N, prediction, 1e-6)
    landed_ND, time_N = euler_step(inputs.noisy_ND, v_ND, inputs.time_N, 1 - inputs.time_N)
    torch.testing.assert_close(landed_ND, pack.clean_ND, atol=1e-5, rtol=1e-5)
    assert torch.equal(time_N, torch.ones_like(time_N))


def test_an_empty_text_teaches_its_gap_that_nothing_is_missing() -> None:
    assert corrupt(objective(), sample(text([])), 0).count_S.tolist() == [0]
    answer = corrupt(objective(), sample(text([5, 6], "prompt"), text([], "target")), 0)
    assert answer.layout.slot_S.tolist() == [2]
