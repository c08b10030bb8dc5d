"""A batch of texts alone is what it is among images: the same states, the same outputs, the same loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.document import TextSegment
from oneflow_core.model import OneFlowModel
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import collate
from tests.core.corruptions import ALL_TARGET, MIXTURES, TEXTS, corrupt, elements_of, objective
from tests.core.words import TINY, image, sample, text


def network() -> OneFlowModel:
    torch.manual_seed(1)
    model = OneFlowModel(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@given(st.lists(TEXTS, min_size=1, max_size=4), MIXTURES, st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_a_document_of_text_is_the_same_to_every_mixture(
    segments: list[TextSegment], mixture: TaskMixture, seed: int
) -> None:
    """A mixture of tasks speaks of images; prompts kept, it changes nothing of a document without one."""
    ours, theirs = (
        corrupt(objective(mixture=m), sample(*segments), seed)
        for m in (ALL_TARGET, replace(mixture, prompt_dropout=0.0))
    )
    assert elements_of(ours) == elements_of(theirs)
    assert (ours.clock_C, ours.weight_C, ours.text_targets) == (
        theirs.clock_C,
        theirs.weight_C,
        theirs.text_targets,
    )


def test_a_story_whose_images_are_absent_is_the_text_that_is_left() -> None:
    model, made, found = network(), objective(), 0
    story = sample(text([2, 3, 4, 5]), image(), text([6, 7, 8]), image())
    for seed in range(150):
        example = corrupt(made, story, seed)
        _, tokens, _ = elements_of(example)
        if 1 in tokens or len(tokens) == 1:
            continue
        found += 1
        many = (corrupt(made, sample(text(tokens[1:])), s) for s in range(1000))
        whole = next(e for e in many if not e.count_S.any())
        with torch.no_grad():
            a, b = (model(collate([e]).inputs) for e in (example, whole))
        torch.testing.assert_close(a.pi_logit_S, b.pi_logit_S)
        torch.testing.assert_close(a.rate_S, b.rate_S)
    assert found >= 5


def test_texts_have_the_loss_and_the_gradients_that_they_have_among_images() -> None:
    model, made = network(), objective()
    texts = [corrupt(made, sample(text(list(range(2, 6 + n)))), n) for n in range(6)]
    stories = [corrupt(made, sample(text([2, 3]), image(), text([n + 4]), seed=n), n) for n in range(6)]
    parts, gradients = [], []
    for batch in (texts, stories, texts + stories):
        model.zero_grad()
        loss = made.loss(model, collate(batch), {"text": 10.0, "image": 10.0})
        loss.total.backward()
        parts.append(loss.parts)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float(parts[0]["image"]) == 0 < float(parts[1]["image"])
    for name in ("tokens", "rate", "zero", "image"):
        assert float(parts[2][name]) == pytest.approx(float(parts[0][name] + parts[1][name]), rel=1e-5)
    torch.testing.assert_close(gradients[2], gradients[0] + gradients[1], atol=1e-5, rtol=1e-4)
    assert len(gradients[0]) == sum(p.numel() for p in model.parameters())
